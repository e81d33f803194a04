"""Denoising: add noise to a patch, let the network take it away. A pretext task in a package of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl import Method, MethodOutput, Positive, Views, explained_variance, masked_mse


@dataclass(frozen=True)
class DenoisingConfig:
    """Settings of the plans' `ssl.denoising` block."""

    noise: Positive = 1.0  # standard deviation, in units of the normalised image


class Denoising(Method):
    """Reconstruct a patch from a noisy copy of it."""

    name = "denoising"
    Config = DenoisingConfig
    citation = "Vincent P. et al. (2008). Extracting and composing robust features with denoising autoencoders. ICML."

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        return Views(region_size=tuple(patch_size), network_size=tuple(patch_size))

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image = batch["image"]
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        return {"noisy": image + self.config.noise * noise, "target": image, "excluded": batch["excluded"]}

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        prediction = self.backbone(inputs["noisy"])
        everywhere = torch.ones_like(inputs["excluded"])
        scored = (prediction, inputs["target"], everywhere, inputs["excluded"])
        loss = masked_mse(*scored)
        with torch.no_grad():
            terms = {"explained_variance": explained_variance(*scored)}
        preview = {"target": inputs["target"], "noisy": inputs["noisy"], "denoised": prediction.detach()}
        preview["excluded"] = inputs["excluded"]
        return MethodOutput(loss, terms, preview)
