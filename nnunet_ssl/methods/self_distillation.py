"""Self-distillation: reconstruct what is hidden, and say of it what a slower twin says that sees everything.

Jiang et al., "Self-supervised 3D anatomy segmentation using self-distilled masked image transformer (SMIT)" (MICCAI 2022,
https://arxiv.org/abs/2205.10342), for any encoder, with the losses of iBOT (Zhou et al., ICLR 2022,
https://arxiv.org/abs/2111.07832) and DINOv2 (Oquab et al., 2023, https://arxiv.org/abs/2304.07193).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd, log, prod
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.heads.projector import PrototypeHead, cell_features, check_bottleneck, projector_width
from nnunet_ssl.heads.teacher import RunningMean, follow, rising_momentum, twin_of, warmed_up
from nnunet_ssl.losses.distillation_loss import (
    assignment_health,
    centred_assignment,
    distillation,
    sinkhorn_assignment,
)
from nnunet_ssl.losses.embeddings import health, knn_agreement
from nnunet_ssl.losses.gather import global_sum, warn_if_few
from nnunet_ssl.losses.reconstruction import Loss
from nnunet_ssl.methods.base import MethodOutput
from nnunet_ssl.methods.simmim import SimMIM, SimMIMConfig, SimMIMInputs
from nnunet_ssl.methods.tensors import Bool, Feature, Float, Whole
from nnunet_ssl.settings.blocks import require
from nnunet_ssl.settings.bounds import Count, NotNegative, PerAxis, Positive, Probability, Width
from nnunet_ssl.views import rng
from nnunet_ssl.views.crops import check_crop, crop_within, cut_views, mostly_usable, random_corners
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.intensity import augment_intensity
from nnunet_ssl.views.masks import (
    MaskBlock,
    MaskRatio,
    aligned_block,
    block_grid,
    draw_ratio,
    random_blocks,
    upsample_blocks,
    upsample_mask,
)
from nnunet_ssl.views.spec import Views

Centring = Literal["mean", "sinkhorn"]
VIEWS = 2  # crops of every image


@dataclass(frozen=True)
class SelfDistillationConfig(SimMIMConfig):
    """Fields of SimMIM, and those of the distillation. Defaults: SMIT's paper and code, which follows iBOT's."""

    crop_size: PerAxis | None = None  # voxels; None: up to 3/4 of the patch, SMIT's 96 of 128
    mask_ratio: MaskRatio = 0.7  # share of hidden blocks, or a pair to draw it from once per batch; SMIT
    # Voxels per axis, a multiple of the token; None: one token, which for U-Nets has 16 voxels (SMIT), at most their stride
    mask_block: MaskBlock | None = None
    loss: Loss = "l1"  # of the reconstruction; SMIT
    reconstruction_weight: Positive = 1.0  # of the reconstruction; SMIT. Without it the decoder is not used
    token_weight: NotNegative = 0.1  # of the distillation of hidden tokens; SMIT
    image_weight: NotNegative = 0.1  # of the distillation of whole views, each from the other one; SMIT
    prototypes: Width | None = None  # None: 8192 (SMIT, iBOT), at most 8 times the features of tiny networks
    # Hidden width of the heads; None: 2048 (DINO, iBOT), at most 8 times the features of tiny networks
    projector_dim: Width | None = None
    embedding_dim: Width | None = None  # bottleneck; None: 256 (DINO, iBOT), at most as many as the features
    compared_tokens: Count = 128  # hidden tokens of a view that are distilled, drawn at random; DINOv2 hides up to 128
    student_temperature: Positive = 0.1  # SMIT, iBOT, DINOv2
    first_teacher_temperature: Positive = 0.04  # SMIT, iBOT, DINOv2; lower is sharper
    teacher_temperature: Positive = 0.07  # at the end of its warm-up; SMIT, DINOv2; higher ones are unstable (DINO)
    temperature_warmup: Probability = 0.3  # share of the training; DINOv2's 30 of 100 epochs, SMIT's 30 of 500
    momentum: Probability = 0.996  # of the teacher at the start; SMIT, iBOT (DINOv2: 0.992)
    final_momentum: Probability = 1.0  # at the end, along half a cosine; SMIT, iBOT, DINOv2
    centring: Centring = "mean"  # of the teacher; mean: running (SMIT, iBOT), sinkhorn: DINOv2's other choice
    centre_momentum: Probability = 0.9  # SMIT, iBOT, DINOv2
    # Factor on the probabilities of the intensity changes, 0: none, as SMIT; iBOT's are stronger
    augmentation: NotNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.token_weight + self.image_weight > 0,
            "token_weight or image_weight must be > 0: without, use the method simmim instead.",
        )


class SelfDistillationInputs(SimMIMInputs):
    """What the task makes of a batch: as `SimMIM` of 2B views, the first ones of all images, then the second ones."""

    places: Whole  # [2B, T]: numbers of the compared tokens, in C order
    token_usable: Bool  # [2B, T]: hidden, and mostly image
    image_usable: Bool  # [2B]: both views are mostly image
    temperature: Float  # of the teacher, a scalar


class SelfDistillationEncoded(TypedDict):
    """What the task makes of the answers of student and teacher."""

    reconstructed: Feature  # [2B, C, *crop]
    token: Feature  # [2B, T, F]
    image: Feature  # [2B, F]
    teacher_token: Feature  # [2B, T, F]
    teacher_image: Feature  # [2B, F]


class SelfDistillation(SimMIM):
    """A student that sees two masked crops of an image, and a teacher that sees them whole.

    The student reconstructs what is hidden as in `SimMIM`. Heads on the encoder's features say for every token, and for the
    view as a whole, to which of many prototypes it belongs. The student's answer at hidden tokens shall be the teacher's at
    the same token of the same crop; its answer for a whole crop the teacher's for the other crop (cross entropy). The teacher,
    network and heads, is the exponential moving average of the student, moved after every step, and gets no gradients. Its
    scores are centred and sharpened, so that it neither calls everything the same nor nothing anything.

    Tokens: those of a Primus; for U-Nets cells of 16 voxels (of the stride where that is less), described by the averages of all
    feature maps of the encoder. A view: the average of its tokens. Excluded tokens and views do not count.

    Differs from SMIT: any encoder, instead of Swin with a class token; crops change in intensity; at most `compared_tokens`
    hidden tokens of a view are compared, and only these are in the running mean, which is right from the second step on; the
    last layer of the heads, and the temperature of tokens, are not held for the first epochs. From iBOT and DINOv2: no small
    crops, no KoLeo term, all views masked. And in the heads: norms over the batch (DINO's `use_bn_in_head`). With LayerNorms
    all assignments became equal within fifty steps on small images, because what differs between views is a hundredth of what
    they have in common. The teacher has a decoder as well, for those who want to fine-tune from it.
    """

    teacher: Backbone

    name = "self_distillation"
    trivial_answer = "the mean grey value and all prototypes alike"
    Config = SelfDistillationConfig
    Inputs = SelfDistillationInputs
    Encoded = SelfDistillationEncoded
    crop_setting = "self_distillation.crop_size"
    citation = (
        "Jiang J. et al. (2022). Self-supervised 3D anatomy segmentation using self-distilled masked image transformer (SMIT). "
        "MICCAI. | Zhou J. et al. (2022). iBOT: Image BERT Pre-Training with Online Tokenizer. ICLR. | Oquab M. et al. (2023). "
        "DINOv2: Learning Robust Visual Features without Supervision. arXiv:2304.07193."
    )

    def __init__(self, backbone: Backbone, config: SelfDistillationConfig) -> None:
        # A U-Net has no tokens: its cells are as large as the blocks that are hidden, or as its stride where that is less.
        token = tuple(gcd(b, s) for b, s in zip(backbone.mask_block, backbone.stride, strict=True))
        block = aligned_block(config.mask_block, token, "a token, which is hidden as a whole")
        super().__init__(backbone, replace(config, mask_block=block))
        check_bottleneck(backbone)
        self.grid = tuple(s // t for s, t in zip(backbone.patch_size, token, strict=True))
        self.token, self.block = token, tuple(b // t for b, t in zip(block, token, strict=True))
        features = sum(backbone.feature_channels)
        hidden = projector_width(config.projector_dim, features)
        embedding = config.embedding_dim or min(256, features)
        self.prototypes = config.prototypes or min(8192, 8 * features)
        self.weights = {"token": config.token_weight, "image": config.image_weight}
        wanted = [name for name, weight in self.weights.items() if weight > 0]
        self.head = nn.ModuleDict({n: PrototypeHead(features, hidden, embedding, self.prototypes) for n in wanted})
        self.teacher, self.teacher_head = twin_of(backbone), twin_of(self.head)
        self.centre = nn.ModuleDict({name: RunningMean(torch.zeros(self.prototypes)) for name in wanted})
        self.images_needed = 2 if "image" in wanted else 1

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        patch = tuple(int(s) for s in patch_size)
        crop = config.crop_size or tuple(crop_within(s, 0.5, 0.75) for s in patch)
        check_crop(crop, patch)
        return Views(region_size=patch, network_size=crop)

    def train(self, mode: bool = True) -> SelfDistillation:
        """As any module; the teacher's network stays in evaluation. Its heads have norms over the batch as the student's."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        config, region, crop = self.config, batch["image"].shape[2:], self.backbone.patch_size
        corners = random_corners(len(batch["image"]), VIEWS, region, crop, generator)
        # [2B]: the first views of all images, then the second ones.
        image, excluded = (cut_views(batch[name], corners, crop) for name in ("image", "excluded"))
        if self.training:
            warn_if_few("self_distillation", len(batch["image"]), enough=2, recipe=8, together=True)
            image = augment_intensity(image, generator, config.augmentation)
        width, blocks = block_grid(self.grid, self.block)
        ratio = draw_ratio(config.mask_ratio, generator)
        coarse = random_blocks(len(image), blocks, ratio, generator, config.mask_style)
        hidden = upsample_blocks(coarse, width, self.grid)  # [2B, *grid]
        flat = hidden.reshape(len(image), -1)
        # As many places in every step, hidden ones first: where fewer are hidden, the rest does not count.
        order = (rng.Host(generator).rand(*flat.shape) + ~flat).argsort(axis=1)
        places = order[:, : min(config.compared_tokens, prod(self.grid))]
        compared = to_device(np.take_along_axis(flat, places, axis=1), image.device)
        on_device = to_device(places, image.device)
        usable = (cell_features([excluded.float()], self.grid).squeeze(2) < 0.5).gather(1, on_device)
        first, second = mostly_usable(excluded).chunk(VIEWS)
        progress = self.progress if self.training else 1.0
        temperature = warmed_up(
            config.first_teacher_temperature, config.teacher_temperature, config.temperature_warmup, progress
        )
        return {
            "image": image,
            "excluded": excluded,
            "hidden": upsample_mask(to_device(hidden, image.device), self.token, crop),
            "places": on_device,  # of tokens in C order, [2B, T]
            "token_usable": compared & usable,  # [2B, T]
            "image_usable": (first & second).repeat(VIEWS),  # [2B]
            "temperature": to_device(np.array(temperature, dtype=np.float32), image.device),
        }

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**super().counts(inputs), **{f"{name}_number": inputs[f"{name}_usable"].sum() for name in self.head}}

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        return self.compare(self.encode(inputs), inputs)

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.masked_features(inputs)
        with torch.no_grad():
            seen = self._described(self.teacher.features(inputs["image"]), inputs["places"])
        own = self._described(features, inputs["places"])
        return {"reconstructed": self.backbone.decode(features), **own, **{f"teacher_{k}": v for k, v in seen.items()}}

    def _described(self, maps: Sequence[Tensor], places: Tensor) -> dict[str, Tensor]:
        """Features of the tokens at `places`, [2B, T, F], and of whole views, [2B, F]."""
        tokens = cell_features(maps, self.grid)
        chosen = tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return {"token": chosen, "image": tokens.mean(dim=1)}

    def compare(self, encoded: dict[str, Tensor], inputs: dict[str, Tensor]) -> MethodOutput:
        reconstructed = self.score(encoded["reconstructed"], inputs)
        loss = self.config.reconstruction_weight * reconstructed.loss
        terms = {**reconstructed.terms, "reconstruction": reconstructed.loss.detach()}
        statistics: dict[str, Tensor] = {}
        for name, head in self.head.items():
            usable = inputs[f"{name}_usable"].flatten()
            weight = usable.float()
            _, scores = head(encoded[name].flatten(0, -2), usable)
            with torch.no_grad():
                seen = encoded[f"teacher_{name}"]
                if name == "image":  # of the other view
                    seen = torch.cat(seen.chunk(VIEWS)[::-1])
                embedding, wanted = self.teacher_head[name](seen.flatten(0, -2), usable)
                assignment = self._assign(name, wanted, weight, inputs["temperature"])
                statistics |= {name: (wanted * weight.unsqueeze(1)).sum(dim=0), f"{name}_rows": weight.sum()}
            number = inputs.get(f"{name}_number", weight.sum())
            distilled = distillation(assignment, scores, self.config.student_temperature, weight, number)
            loss = loss + self.weights[name] * distilled
            terms[f"{name}_distillation"] = distilled.detach()
            terms |= {f"{name}_{k}": v for k, v in assignment_health(assignment, scores, weight).items()}
            if name == next(iter(self.head)):  # tokens that were seen, where these are distilled
                terms |= health(embedding, usable)
            if name == "image":
                first, second = embedding.chunk(VIEWS)
                terms["knn_agreement"] = knn_agreement(first, second, usable.chunk(VIEWS)[0])
        images = len(inputs["image"]) // VIEWS
        return MethodOutput(loss, terms, {k: v[:images] for k, v in reconstructed.preview.items()}, statistics)

    def _assign(self, name: str, scores: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
        """The teacher's assignments [N, K] of its scores [N, K]."""
        if self.config.centring == "sinkhorn":
            return sinkhorn_assignment(scores, weight, temperature, together=self.training)
        centre: Any = self.centre[name]
        return centred_assignment(scores, centre.value, temperature)

    @torch.no_grad()
    def after_step(self, statistics: Mapping[str, Tensor], moved: Tensor) -> None:
        config = self.config
        for name, centre in self.centre.items():
            assert isinstance(centre, RunningMean)
            # Every process has its part of the batch; the mean is that of all.
            total, rows = (global_sum(statistics[key], together=True) for key in (name, f"{name}_rows"))
            centre.take_in(total, rows, config.centre_momentum, moved)
        momentum = rising_momentum(config.momentum, config.final_momentum, self.progress)
        for teacher, student in ((self.teacher, self.backbone), (self.teacher_head, self.head)):
            follow(teacher, student, momentum, moved)

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The mean grey value, and all prototypes equally likely: the logarithm of their number.

        The best constant answer is the mean of the teacher's, which is the same where it uses all prototypes alike, as its
        centre has it do. What it says is known only while it is there, and changes: a teacher that uses few of them makes
        constant answers cheap. That is what `diversity`, spread and rank are logged for.
        """
        reconstructed = super().yardstick(inputs)
        distilled = sum(self.weights.values()) * log(self.prototypes)
        return None if reconstructed is None else self.config.reconstruction_weight * reconstructed + distilled
