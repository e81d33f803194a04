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
    from nnunet_ssl.testing.tiny_step import tiny_method

    default_patch = patch
    small: dict[str, Any] = SMALL.get(method_class.name, {})

    def build(kind: str, patch: tuple[int, ...] | None = None, channels: int = 1, embed: int = 72, **given: Any) -> Any:
        if kind == "primus" and "mask_block" in small:
            given = {"mask_block": 8, **given}  # a token
        settings = {**small, **given}
        return tiny_method(method_class, kind, default_patch if patch is None else patch, channels, embed, settings)

    return build


@pytest.fixture
def batch_of(method_class: type, patch: tuple[int, ...]) -> Callable[..., dict[str, Any]]:
    """Function (patch, channels, number, **config) -> random batch of the regions that the method reads."""
    from nnunet_ssl.testing.tiny_step import tiny_batch

    default_patch = patch

    def draw(patch: tuple[int, ...] | None = None, channels: int = 1, number: int = 3, **config: Any) -> dict[str, Any]:
        return tiny_batch(method_class, default_patch if patch is None else patch, channels, number, config)

    return draw


@pytest.fixture
def prepared() -> Callable[..., dict[str, Any]]:
    """Function (method, batch, seed) -> inputs of the network."""
    from nnunet_ssl.testing.tiny_step import prepare

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
