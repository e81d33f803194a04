"""Random numbers that belong to the images of a batch, not to the process that happens to hold them.

A batch that is shared by processes shall be corrupted as it would be in one. So every image has a key, and what is drawn
for it follows from the key and from which draw it is: no process needs to draw the numbers of the others to know its own.
Few numbers per image are hashed, all images at once, with SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
Number Generators", OOPSLA 2014). Many, such as noise, come from torch's own generator, seeded anew for each image.

The first axis of a drawn tensor holds the images, or V views of each: the first views of all images, then the second ones,
and so on, as `Method.prepare` says. With a plain `torch.Generator` all functions draw from it, as torch's own do. How many
draws there are must not depend on what the images show: images elsewhere would be counted differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, prod

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2**64 / golden ratio, as a signed number
DRAWS = 2**16  # at most this many views per draw
MANY = 2**13  # numbers per row from which on seeding a generator pays


class ImageGenerator(torch.Generator):
    """A generator for the images number `images` of a batch; all processes give the same `seed` for the same step.

    What is drawn through this module belongs to the images. What torch's own functions draw from it belongs to the process,
    independently of what others draw.
    """

    keys: Tensor  # [B] int64, one per image
    seeds: Tensor  # the same on the host, which seeds generators without asking the device
    whole: torch.Generator  # of what concerns the batch as a whole; equal in all processes
    number: int  # of the next draw

    def __new__(cls, device: torch.device | str, seed: int, images: range) -> ImageGenerator:
        self = super().__new__(cls, device)  # type: ignore[call-arg]  # torch.Generator takes the device here
        self.manual_seed((seed * 2**20 + images.start + 1) % 2**63)
        self.whole = torch.Generator(device).manual_seed(seed)
        self.keys, self.seeds = image_keys(device, seed, images), image_keys("cpu", seed, images)
        self.number = 0
        return self


def image_keys(device: torch.device | str, seed: int, images: range) -> Tensor:
    """Keys [B] of the images number `images` of a batch."""
    places = torch.arange(images.start, images.stop, device=device)
    return _mix(_mix(torch.full_like(places, seed)) + (places + 1) * GOLDEN)


def whole(generator: torch.Generator) -> torch.Generator:
    """The generator of what is drawn once per batch."""
    return generator.whole if isinstance(generator, ImageGenerator) else generator


def by_image(generator: torch.Generator, rows: int) -> torch.Generator:
    """A generator for tensors whose first axis holds `rows` rows of the first image, then those of the second, ..."""
    if not isinstance(generator, ImageGenerator):
        return generator
    child = ImageGenerator(generator.device, 0, range(0))
    child.whole = generator.whole
    child.keys, child.seeds = (
        _row_keys(k, rows, generator.number).view(rows, -1).t().flatten() for k in (generator.keys, generator.seeds)
    )
    generator.number += 1
    return child


def rand(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform on [0, 1)."""
    if not isinstance(generator, ImageGenerator):
        return torch.rand(*shape, generator=generator, device=generator.device)
    return _draw(generator, shape, torch.float32, _uniform, lambda row, g: row.uniform_(generator=g))


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal."""
    if not isinstance(generator, ImageGenerator):
        return torch.randn(*shape, generator=generator, device=generator.device)
    return _draw(generator, shape, torch.float32, _normal, lambda row, g: row.normal_(generator=g))


def exponential(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Exponential with mean 1."""
    if not isinstance(generator, ImageGenerator):
        return torch.empty(*shape, device=generator.device).exponential_(generator=generator)
    return -(1 - rand(shape, generator)).log()


def randint(low: int, high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Whole numbers low..high - 1 (int64); their range is below 2**31."""
    if not isinstance(generator, ImageGenerator):
        return torch.randint(low, high, tuple(shape), generator=generator, device=generator.device)

    def whole_numbers(bits: Tensor) -> Tensor:
        return low + (((bits >> 32) & 0xFFFFFFFF) * (high - low) >> 32)

    return _draw(generator, shape, torch.int64, whole_numbers, lambda row, g: row.random_(low, high, generator=g))


def noise(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal [M, *shape], each row a function of its key [M] alone (whole numbers, as `randint` draws them)."""
    out = torch.empty(len(keys), *shape, device=keys.device)
    return _seeded(out, keys.tolist(), lambda row, g: row.normal_(generator=g))


def dropped(keys: Tensor, rows: int, probability: float, number: int) -> Tensor:
    """Bool [rows]: for the V views of each image [B] of `keys`, whether it is dropped in draw `number`."""
    return _uniform(_row_keys(keys, rows // len(keys), number)) < probability


def _draw(
    generator: ImageGenerator,
    shape: Sequence[int],
    dtype: torch.dtype,
    of_bits: Callable[[Tensor], Tensor],
    fill: Callable[[Tensor, torch.Generator], object],
) -> Tensor:
    """A tensor of which each row belongs to its image: hashed by `of_bits`, or filled in place by `fill` where long."""
    images = len(generator.keys)
    if not shape or shape[0] % images:
        raise ValueError(
            f"Random numbers {tuple(shape)} cannot belong to {images} images: the first axis is no multiple of them. "
            "See nnunet_ssl.views.draws; what concerns the batch as a whole is drawn from whole(generator)."
        )
    views, number, count = shape[0] // images, generator.number, prod(shape[1:])
    generator.number += 1
    if count >= MANY:
        out = torch.empty(*shape, dtype=dtype, device=generator.device)
        return _seeded(out, _row_keys(generator.seeds, views, number).tolist(), fill)
    keys = _row_keys(generator.keys, views, number)
    places = torch.arange(1, count + 1, device=keys.device) * GOLDEN
    return of_bits(_mix(keys.unsqueeze(1) + places)).view(*shape)


def _seeded(out: Tensor, seeds: Sequence[int], fill: Callable[[Tensor, torch.Generator], object]) -> Tensor:
    """Fill each row of a tensor in place with numbers of its own seed."""
    generator = torch.Generator(out.device)
    for row, seed in zip(out, seeds, strict=True):
        fill(row, generator.manual_seed(seed % 2**63))
    return out


def _row_keys(keys: Tensor, views: int, number: int) -> Tensor:
    """Keys [V * B] of the rows of draw `number`."""
    view = torch.arange(views, device=keys.device).unsqueeze(1) + (number * DRAWS + 1)
    return _mix(keys + view * GOLDEN).flatten()


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, on int64 as if it were unsigned, in place."""
    x ^= (x >> 30) & (2**34 - 1)
    x *= 0xBF58476D1CE4E5B9 - 2**64
    x ^= (x >> 27) & (2**37 - 1)
    x *= 0x94D049BB133111EB - 2**64
    x ^= (x >> 31) & (2**33 - 1)
    return x


def _uniform(bits: Tensor) -> Tensor:
    return ((bits >> 40) & (2**24 - 1)).float() * 2**-24


def _normal(bits: Tensor) -> Tensor:
    """Box and Muller's transformation of two uniform numbers, 24 bits each."""
    first, second = 1 - _uniform(bits), _uniform(bits << 24)
    return (-2 * first.log()).sqrt() * (2 * pi * second).cos()
