"""Random numbers that belong to the images of a batch, not to the process that happens to hold them.

A batch that is shared by processes shall be corrupted as it would be in one. So every image has a key, and what is drawn
for it follows from the key and from which draw it is: no process needs to draw the numbers of the others to know its own.
Few numbers per image are hashed, all images at once and on the host, with SplitMix64 (Steele, Lea, Flood, "Fast Splittable
Pseudorandom Number Generators", OOPSLA 2014). Many, such as noise, come from torch's own generator, seeded anew for each
image. Numbers that decide what is done to an image stay on the host (`Host`), so that no GPU is asked for them.

The first axis of a drawn tensor holds the images, or V views of each: the first views of all images, then the second ones,
and so on, as `Method.prepare` says. With a plain `torch.Generator` all functions draw from it, as torch's own do. How many
draws there are must not depend on what the images show: images elsewhere would be counted differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.views.host import to_device

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2**64 / golden ratio, as a signed number
DRAWS = 2**16  # at most this many views per draw
MANY = 2**13  # numbers per row from which on seeding a generator pays
BATCH = range(-1, 0)  # the number of what concerns the batch as a whole, where images have theirs


class ImageGenerator(torch.Generator):
    """A generator for the images number `images` of a batch; all processes give the same `seed` for the same step.

    What is drawn through this module belongs to the images. What torch's own functions draw from it belongs to the process,
    independently of what others draw.
    """

    seeds: np.ndarray  # [B] int64, one per image
    whole: ImageGenerator  # of what concerns the batch as a whole; equal in all processes
    number: int  # of the next draw

    def __new__(cls, device: torch.device | str, seed: int, images: range) -> ImageGenerator:
        self = super().__new__(cls, device)  # type: ignore[call-arg]  # torch.Generator takes the device here
        self.manual_seed((seed * 2**20 + images.start + 1) % 2**63)
        self.seeds, self.number = image_seeds(seed, images), 0
        self.whole = self if images == BATCH else cls(device, seed, BATCH)
        return self

    @property
    def keys(self) -> Tensor:
        """The seeds [B] as a tensor on the host."""
        return torch.from_numpy(self.seeds)


def image_seeds(seed: int, images: range) -> np.ndarray:
    """Seeds [B] of the images number `images` of a batch."""
    places = np.arange(images.start, images.stop, dtype=np.int64)
    return _mix(_mix(np.full_like(places, seed)) + (places + 1) * GOLDEN)


def whole(generator: torch.Generator) -> torch.Generator:
    """The generator of what is drawn once per batch, whose tensors have a first axis of 1."""
    return generator.whole if isinstance(generator, ImageGenerator) else generator


def by_image(generator: torch.Generator, rows: int) -> torch.Generator:
    """A generator for tensors whose first axis holds `rows` rows of the first image, then those of the second, ..."""
    if not isinstance(generator, ImageGenerator):
        return generator
    child = ImageGenerator(generator.device, 0, BATCH)
    child.whole = generator.whole
    child.seeds = _row_seeds(generator, rows).reshape(rows, -1).T.flatten()
    return child


class Host:
    """Numbers of a generator as numpy arrays on the host.

    Only a plain `torch.Generator` of a GPU has to be asked for them.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def rand(self, *shape: int) -> np.ndarray:
        """Uniform on [0, 1), float32."""
        return self._draw(shape, _uniform, rand)

    def randint(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Whole numbers low..high - 1 (int64); their range is below 2**31."""
        return self._draw(shape, lambda bits: _whole_numbers(bits, low, high), lambda s, g: randint(low, high, s, g))

    def exponential(self, *shape: int) -> np.ndarray:
        """Exponential with mean 1, float32."""
        if not isinstance(self.generator, ImageGenerator):
            return exponential(shape, self.generator).cpu().numpy()
        return -np.log(1 - self.rand(*shape))

    def _draw(
        self,
        shape: tuple[int, ...],
        of_bits: Callable[[np.ndarray], np.ndarray],
        plain: Callable[[Sequence[int], torch.Generator], Tensor],
    ) -> np.ndarray:
        if not isinstance(self.generator, ImageGenerator):
            return plain(shape, self.generator).cpu().numpy()
        return of_bits(_bits(self.generator, shape)).reshape(shape)


def rand(shape: Sequence[int], generator: torch.Generator, rows: Sequence[int] | None = None) -> Tensor:
    """Uniform on [0, 1). rows: which rows of the tensor are wanted, None for all; the others need not be drawn."""
    if not isinstance(generator, ImageGenerator):
        return _rows(torch.rand(*shape, generator=generator, device=generator.device), rows)
    return _draw(generator, shape, torch.float32, _uniform, lambda row, g: row.uniform_(generator=g), rows)


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


def randint(
    low: int, high: int, shape: Sequence[int], generator: torch.Generator, rows: Sequence[int] | None = None
) -> Tensor:
    """Whole numbers low..high - 1 (int64); their range is below 2**31. rows: as in `rand`."""
    if not isinstance(generator, ImageGenerator):
        return _rows(torch.randint(low, high, tuple(shape), generator=generator, device=generator.device), rows)

    def of_bits(bits: np.ndarray) -> np.ndarray:
        return _whole_numbers(bits, low, high)

    return _draw(generator, shape, torch.int64, of_bits, lambda row, g: row.random_(low, high, generator=g), rows)


def noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal [M, *shape], each row a function of its seed alone (whole numbers, as `Host.randint` draws them)."""
    return _seeded(torch.empty(len(seeds), *shape, device=device), seeds, lambda row, g: row.normal_(generator=g))


def dropped(keys: Tensor, rows: int, probability: float, number: int) -> Tensor:
    """Bool [rows]: for the V views of each image [B] of `keys`, whether it is dropped in draw `number`.

    The first views of all images, then the second ones, and so on. Raises ValueError where rows are no multiple of images.
    """
    if rows % len(keys):
        raise ValueError(
            f"The network was given {rows} images or views made of {len(keys)} images. Which paths stochastic depth drops "
            "belongs to the images: give it the first views of all images, then the second ones, ... (see Method.prepare)."
        )
    view = torch.arange(rows // len(keys), device=keys.device).unsqueeze(1) + (number * DRAWS + 1)
    bits = _mix(keys + view * GOLDEN).flatten()
    return ((bits >> 40) & (2**24 - 1)).float() * 2**-24 < probability


def _draw(
    generator: ImageGenerator,
    shape: Sequence[int],
    dtype: torch.dtype,
    of_bits: Callable[[np.ndarray], np.ndarray],
    fill: Callable[[Tensor, torch.Generator], object],
    rows: Sequence[int] | None = None,
) -> Tensor:
    """A tensor of which each row belongs to its image: hashed by `of_bits`, or filled in place by `fill` where long."""
    if prod(shape[1:]) < MANY:
        drawn = of_bits(_bits(generator, shape)).reshape(tuple(shape))
        return to_device(drawn if rows is None else drawn[list(rows)], generator.device)
    seeds = _row_seeds(generator, _views(generator, shape))
    seeds = seeds if rows is None else seeds[list(rows)]
    out = torch.empty(len(seeds), *shape[1:], dtype=dtype, device=generator.device)
    return _seeded(out, seeds.tolist(), fill)


def _views(generator: ImageGenerator, shape: Sequence[int]) -> int:
    """Views of each image in a tensor of this shape."""
    images = len(generator.seeds)
    if not shape or shape[0] % images:
        raise ValueError(
            f"Random numbers {tuple(shape)} cannot belong to {images} images: the first axis is no multiple of them. "
            "See nnunet_ssl.views.rng; what concerns the batch as a whole is drawn from whole(generator)."
        )
    return shape[0] // images


def _bits(generator: ImageGenerator, shape: Sequence[int]) -> np.ndarray:
    """64 random bits for each number of the next draw, int64 [rows, numbers per row]."""
    seeds = _row_seeds(generator, _views(generator, shape))
    places = np.arange(1, prod(shape[1:]) + 1, dtype=np.int64) * GOLDEN
    return _mix(seeds[:, None] + places)


def _rows(drawn: Tensor, rows: Sequence[int] | None) -> Tensor:
    return drawn if rows is None else drawn[to_device(np.array(rows, dtype=np.int64), drawn.device)]


def _seeded(out: Tensor, seeds: Sequence[int], fill: Callable[[Tensor, torch.Generator], object]) -> Tensor:
    """Fill each row of a tensor in place with numbers of its own seed."""
    generator = torch.Generator(out.device)
    for row, seed in zip(out, seeds, strict=True):
        fill(row, generator.manual_seed(seed % 2**63))
    return out


def _row_seeds(generator: ImageGenerator, views: int) -> np.ndarray:
    """Seeds [V * B] of the rows of the next draw."""
    view = np.arange(views, dtype=np.int64)[:, None] + (generator.number * DRAWS + 1)
    generator.number += 1
    return _mix(generator.seeds + view * GOLDEN).flatten()


def _mix(x: Any) -> Any:
    """SplitMix64's finaliser, on int64 (numpy or torch) as if it were unsigned, in place."""
    x ^= (x >> 30) & (2**34 - 1)
    x *= 0xBF58476D1CE4E5B9 - 2**64
    x ^= (x >> 27) & (2**37 - 1)
    x *= 0x94D049BB133111EB - 2**64
    x ^= (x >> 31) & (2**33 - 1)
    return x


def _uniform(bits: np.ndarray) -> np.ndarray:
    return ((bits >> 40) & (2**24 - 1)).astype(np.float32) * np.float32(2**-24)


def _normal(bits: np.ndarray) -> np.ndarray:
    """Box and Muller's transformation of two uniform numbers, 24 bits each."""
    first, second = 1 - _uniform(bits), _uniform(bits << 24)
    return np.sqrt(-2 * np.log(first)) * np.cos(np.float32(2 * pi) * second)


def _whole_numbers(bits: np.ndarray, low: int, high: int) -> np.ndarray:
    return low + (((bits >> 32) & 0xFFFFFFFF) * (high - low) >> 32)
