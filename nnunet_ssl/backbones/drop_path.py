"""Stochastic depth whose dropped paths belong to the images, not to the process or the part of a batch they are in."""

from __future__ import annotations

from timm.layers import DropPath
from torch import Tensor, nn

from nnunet_ssl.views import draws


class ImageDropPath(DropPath):
    """timm's DropPath, drawn from `keys`, one per image [B] (see `nnunet_ssl.views.draws`), while there are any."""

    keys: Tensor | None = None

    def __init__(self, original: DropPath, number: int) -> None:
        super().__init__(original.drop_prob, original.scale_by_keep)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        if self.keys is None or not self.training or self.drop_prob == 0:
            return super().forward(x)
        kept = ~draws.dropped(self.keys, len(x), self.drop_prob, self.number)
        scale = 1 / (1 - self.drop_prob) if self.scale_by_keep else 1.0
        return x * (kept.to(x.dtype) * scale).view(-1, *(1,) * (x.ndim - 1))


def drop_by_image(module: nn.Module) -> list[ImageDropPath]:
    """Replace every DropPath in `module` by one that goes by image, and return them."""
    found = [n for n, m in module.named_modules() if isinstance(m, DropPath)]
    replaced = []
    for number, name in enumerate(found):
        parent, _, attribute = name.rpartition(".")
        replaced.append(ImageDropPath(module.get_submodule(name), number))
        setattr(module.get_submodule(parent), attribute, replaced[-1])
    return replaced


def use_keys(paths: list[ImageDropPath], keys: Tensor | None) -> None:
    """From now on the paths belong to the images with these keys [B]; None: drawn from torch's global generator."""
    for path in paths:
        path.keys = keys
