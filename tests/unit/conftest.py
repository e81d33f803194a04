"""Tiny networks, batches and a training loop for any method; a test module names its METHOD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PATCH = (24, 40, 24)
# What the recipe has too large for tiny networks and tiny patches.
SMALL: dict[str, dict[str, Any]] = {
    "mae": {"mask_block": 4},
    "simmim": {"mask_block": 4},
    "simclr": {"projector_dim": 64},
    "voco": {"projector_dim": 64},
    "consistent_views": {"projector_dim": 64},
    "swin_unetr": {"embedding_dim": 32},
    "self_distillation": {"projector_dim": 64, "prototypes": 48, "compared_tokens": 16},
}


@pytest.fixture
def method_class(request: pytest.FixtureRequest) -> type:
    """The method under test: `METHOD` of the test's module."""
    return request.module.METHOD


@pytest.fixture
def patch(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Voxels of a patch where a test does not say: `PATCH` of the test's module, else 24 x 40 x 24."""
    return getattr(request.module, "PATCH", PATCH)


@pytest.fixture
def make(method_class: type, patch: tuple[int, ...]) -> Callable[..., Any]:
    """Function (kind, patch, channels, embed, **config) -> method around a tiny "unet", "plain" U-Net or "primus"."""
    import torch
    from dynamic_network_architectures.architectures.primus import Primus
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    from torch import nn

    from nnunet_ssl.backbones import wrap_network

    default_patch = patch
    small: dict[str, Any] = SMALL.get(method_class.name, {})

    def unet(channels: int, out: int, ndim: int, plain: bool) -> nn.Module:
        conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
        return (PlainConvUNet if plain else ResidualEncoderUNet)(
            channels, 3, [8, 16, 24], conv, 3, [1, 2, 2], 1, out, [1, 1], True, norm,
            norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )  # fmt: skip

    def build(kind: str, patch: tuple[int, ...] | None = None, channels: int = 1, embed: int = 72, **given: Any) -> Any:
        torch.manual_seed(0)
        patch = default_patch if patch is None else patch
        if kind == "primus" and "mask_block" in small:
            given = {"mask_block": 8, **given}  # a token
        config = method_class.Config(**{**small, **given})
        size, out = method_class.views(config, patch).network_size, method_class.output_channels(config, channels)
        network = (
            Primus(channels, embed, (8,) * 3, out, 2, embed // 72, size, init_values=0.1, scale_attn_inner=True)
            if kind == "primus"
            else unet(channels, out, len(patch), kind == "plain")
        )
        return method_class(wrap_network(network, size, method_class.crop_setting), config)

    return build


@pytest.fixture
def batch_of(method_class: type, patch: tuple[int, ...]) -> Callable[..., dict[str, Any]]:
    """Function (patch, channels, number, **config) -> random batch of the regions that the method reads."""
    import torch

    default_patch = patch

    def draw(
        patch: tuple[int, ...] | None = None, channels: int = 1, number: int = 3, **config: Any
    ) -> dict[str, torch.Tensor]:
        views = method_class.views(method_class.Config(**config), default_patch if patch is None else patch)
        first = (number, views.regions) if views.regions > 1 else (number,)
        image = torch.randn(*first, channels, *views.region_size, generator=torch.Generator().manual_seed(7))
        return {"image": image, "excluded": torch.zeros(*first, 1, *views.region_size, dtype=torch.bool)}

    return draw


@pytest.fixture
def prepared() -> Callable[..., dict[str, Any]]:
    """Function (method, batch, seed) -> inputs of the network."""
    import torch

    def prepare(method: Any, batch: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return method.prepare(batch, torch.Generator().manual_seed(seed))

    return prepare


@pytest.fixture
def smooth() -> Callable[..., Any]:
    """Function (number, size, sigma, seed) -> smooth random images [number, 1, *size] of mean 0 and deviation 1."""
    import numpy as np
    import torch
    from scipy.ndimage import gaussian_filter

    def draw(number: int, size: tuple[int, ...], sigma: float = 2, seed: int = 0) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        images = np.stack([gaussian_filter(rng.normal(size=size), sigma) for _ in range(number)])[:, None]
        return torch.from_numpy((images - images.mean()) / images.std()).float()

    return draw


@pytest.fixture
def train() -> Callable[..., list[Any]]:
    """Function (method, images, steps, lr) -> outputs of the last eight of so many training steps on the images."""
    import torch

    def run(method: Any, images: torch.Tensor, steps: int, lr: float) -> list[Any]:
        optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr)
        generator = torch.Generator().manual_seed(0)
        batch = {"image": images, "excluded": torch.zeros_like(images, dtype=torch.bool)}
        outputs = []
        for step in range(steps):
            method.progress = step / steps
            with torch.no_grad():
                inputs = method.prepare(batch, generator)
            output = method(inputs)
            optimizer.zero_grad()
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(method.parameters(), 1)
            optimizer.step()
            method.after_step(output.statistics, torch.tensor(True))
            outputs.append(output)
        return outputs[-8:]

    return run


@pytest.fixture
def mean_term() -> Callable[..., float]:
    """Function (outputs, name) -> mean of a logged term."""
    return lambda outputs, name: sum(o.terms[name].item() for o in outputs) / len(outputs)
