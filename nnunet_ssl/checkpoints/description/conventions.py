"""How the images of a pre-training were presented to its network: spacing, patch, normalisation, order of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from nnunet_ssl.checkpoints.description.stated import channel_names
from nnunet_ssl.checkpoints.foreign_values import mapping, text, whole_number
from nnunet_ssl.checkpoints.networks.stated import training_configuration

NORMALIZATIONS = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "SSLCTNormalization",
    "SSLMRNormalization",
    "SSLPercentileNormalization",
    "SSLPerImageNormalization",
)
LARGEST_PATCH = 2048  # voxels along an axis; files that say more are not meant seriously


@dataclass(frozen=True)
class Conventions:
    """What a checkpoint states about its images; None and empty where it does not say.

    `spacing` [mm] and the patch sizes [voxels] are in the network's order of axes, after `transpose_forward`.
    """

    spacing: tuple[float, ...] | None = None
    resampled: bool | None = None  # False: every image kept its own spacing, and `spacing` is at most their median
    patch_size: tuple[int, ...] | None = None  # what the network saw
    recommended_patch_size: tuple[int, ...] | None = None  # for fine-tuning, where the file recommends one
    normalization: tuple[str, ...] = ()  # nnU-Net's scheme per channel
    channel_names: tuple[str, ...] = ()
    transpose_forward: tuple[int, ...] | None = None
    reader: str | None = None
    dataset: str | None = None
    num_images: int | None = None
    batch_size: int | None = None  # of supervised training on the same plans
    segments: bool = False  # the network was trained on labels: nnU-Net's own checkpoints, and fine-tuned ones

    @property
    def finetuning_patch_size(self) -> tuple[int, ...] | None:
        """The patch size to fine-tune with: the recommended one, else what the network saw."""
        return self.recommended_patch_size or self.patch_size


def read_conventions(checkpoint: Mapping[str, Any]) -> Conventions:
    """The conventions in a checkpoint of ours, nnU-Net's or nnssl's; whatever is not plausible counts as not stated."""
    ssl, adaptation = mapping(checkpoint.get("ssl")), mapping(checkpoint.get("nnssl_adaptation_plan"))
    arguments = mapping(checkpoint.get("init_args"))
    foreign = mapping(adaptation.get("pretrain_plan"))
    plans = mapping(arguments.get("plans")) or foreign
    configuration: Mapping[str, Any] = training_configuration(checkpoint)
    stated = configuration or mapping(next(iter(mapping(foreign.get("configurations")).values()), {}))
    dataset_json = mapping(arguments.get("dataset_json"))
    spacing = _numbers(stated.get("spacing"))
    style = stated.get("spacing_style")
    known = bool(stated)
    not_resampled = stated.get("resampling_fn_data") == "no_resampling_hack" or style == "noresample"
    return Conventions(
        spacing=spacing,
        resampled=None if not known else not (not_resampled or spacing is None),
        patch_size=_sizes(
            ssl.get("patch_size") or adaptation.get("pretrain_patch_size") or stated.get("patch_size") or None
        ),
        recommended_patch_size=_sizes(configuration.get("patch_size"))
        or _sizes(adaptation.get("recommended_downstream_patchsize")),
        normalization=_names(stated.get("normalization_schemes"), NORMALIZATIONS),
        channel_names=tuple(channel_names(checkpoint) or ()),
        transpose_forward=_permutation(plans.get("transpose_forward")),
        reader=text(plans.get("image_reader_writer")),
        dataset=text(ssl.get("dataset") or plans.get("dataset_name")),
        num_images=whole_number(dataset_json.get("numTraining"), 1, 10**7),
        batch_size=whole_number(configuration.get("batch_size"), 1, 10**7),
        segments=bool(configuration) and not ssl and not adaptation,
    )


def _numbers(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, (list, tuple)) or len(value) not in (2, 3):
        return None
    if not all(isinstance(v, (int, float)) and isfinite(v) and 0 < v < 1e4 for v in value):
        return None
    return tuple(float(v) for v in value)


def _sizes(value: Any) -> tuple[int, ...] | None:
    numbers = _numbers(value)
    if numbers is None or not all(v == int(v) and v <= LARGEST_PATCH for v in numbers):
        return None
    return tuple(int(v) for v in numbers)


def _permutation(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, (list, tuple)) or not all(type(v) is int for v in value):
        return None
    return tuple(value) if sorted(value) == list(range(3)) else None


def _names(value: Any, known: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        return ()
    return tuple(str(v) if v in known else f"unknown ({str(v)[:40]})" for v in value if isinstance(v, str))
