"""Fixed networks and schedules for pre-training, in the form of nnU-Net's plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Learns on a CPU within minutes; for demos and tests.
SHORT = {
    "optimizer": "adamw",
    "initial_lr": 1e-3,
    "num_iterations_per_epoch": 50,
    "num_val_iterations_per_epoch": 10,
}


@dataclass(frozen=True)
class Preset:
    """A network, the size of what it sees and the schedule it is trained with."""

    network_class_name: str
    arch_kwargs: Mapping[str, Any]
    requires_import: tuple[str, ...]
    stride: int  # voxels per position of the coarsest feature map; patch sizes are multiples of it
    patch_edge: int  # voxels; smaller where the images are
    batch_size: int  # of supervised training
    ssl: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def architecture(self, patch_size: Sequence[int]) -> dict[str, Any]:
        """The "architecture" entry of a configuration."""
        kwargs = dict(self.arch_kwargs)
        if "patch_embed_size" in kwargs:
            kwargs["input_shape"] = list(patch_size)  # the size of Primus' position embedding
        return {
            "network_class_name": self.network_class_name,
            "arch_kwargs": kwargs,
            "_kw_requires_import": list(self.requires_import),
        }


def residual_encoder_unet(features: Sequence[int], blocks: Sequence[int]) -> dict[str, Any]:
    """The entries of a Preset that describe a 3-D ResidualEncoderUNet as nnU-Net's ResEnc planner writes it."""
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3] for _ in range(stages)],
            "strides": [[1, 1, 1], *([2, 2, 2] for _ in range(stages - 1))],
            "n_blocks_per_stage": list(blocks),
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "requires_import": ("conv_op", "norm_op", "dropout_op", "nonlin"),
        "stride": 2 ** (stages - 1),
    }


def primus(embed_dim: int, depth: int, heads: int, drop_path_rate: float) -> dict[str, Any]:
    """The entries of a Preset that describe a Primus with tokens of 8 x 8 x 8 voxels (https://arxiv.org/abs/2503.01835).

    The width of a head must be a multiple of 6, or its rotary position embedding does not work out.
    """
    return {
        "network_class_name": "dynamic_network_architectures.architectures.primus.Primus",
        "arch_kwargs": {
            "embed_dim": embed_dim,
            "patch_embed_size": [8, 8, 8],
            "eva_depth": depth,
            "eva_numheads": heads,
            "drop_path_rate": drop_path_rate,
            "init_values": 0.1,
            "scale_attn_inner": True,
        },
        "requires_import": (),
        "stride": 8,
    }


# Patch and batch sizes of the OpenMind benchmark (https://arxiv.org/abs/2412.17041): 8 for pre-training, 32 for SimCLR, whose
# crops are a sixteenth of a patch, 2 for fine-tuning. Consistent views (https://arxiv.org/abs/2509.13846): 4, two views each.
PUBLISHED = {"batch_size": 8, "simclr": {"batch_size": 32}, "consistent_views": {"batch_size": 4}}
RESENC_L = Preset(
    **residual_encoder_unet((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)),
    patch_edge=160,
    batch_size=2,
    ssl=PUBLISHED,
)
PRIMUS_M = Preset(**primus(864, 16, 12, drop_path_rate=0.2), patch_edge=160, batch_size=2, ssl=PUBLISHED)
# The ViT of nnFoundation (https://arxiv.org/abs/2609.26924) as nnssl trains it, on images that are not resampled; nnssl calls it
# PrimusX. Its CNN is RESENC_L with the same patch, batch and epochs.
PRIMUS_X = Preset(
    **primus(1056, 40, 16, drop_path_rate=0.2),
    patch_edge=192,
    batch_size=2,
    ssl={
        "batch_size": 96,
        "num_epochs": 2500,
        "mae": {"initial_lr": 2e-3, "mask_ratio": 0.8, "decoder_depth": 8},
    },
)
RESENC_TINY = Preset(
    **residual_encoder_unet((12, 24, 48, 96), (1, 2, 2, 2)),
    patch_edge=64,
    batch_size=4,
    ssl={**SHORT, "num_epochs": 50, "batch_size": 6},
    finetune={**SHORT, "num_epochs": 30},
)
# Primus' own learning rate, and half of the tokens instead of 0.7: of the few in a small crop 13 would be left to guess from, and
# what can be guessed of the others, and so what the teacher says of them, comes down to two directions (benchmarks/LOG.md).
FEW_TOKENS = {"self_distillation": {"initial_lr": 3e-4, "mask_ratio": 0.5}}
PRIMUS_TINY = Preset(
    **primus(216, 6, 3, drop_path_rate=0.0),
    patch_edge=64,
    batch_size=4,
    ssl={**SHORT, "num_epochs": 50, "batch_size": 8, **FEW_TOKENS},
    finetune={**SHORT, "num_epochs": 30},
)
