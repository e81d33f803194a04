"""Normalisation per image by what kind of image it is, as schemes that stand in nnU-Net's plans like its own.

CT has absolute values: a fixed window. MR has none: a z-score of the tissue. Everything else (PET, ultrasound, what
nobody named): percentiles. All three bring tissue to values around -2 to 2, so that one loss suits them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

from nnunet_ssl.corpus.table import has_table, read_table
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.preprocessing.foreground import air_threshold, is_foreground

NNUNET, PER_IMAGE = "nnunet", "per_image"
STYLES = (NNUNET, PER_IMAGE)
CT, MR, OTHER = "CT", "MR", "other"
MODALITY = "modality"  # of an image of an imported corpus, in the description of a case and in its properties
WINDOW = (-1000.0, 1000.0)  # Hounsfield units: air, lung, soft tissue and most bone
SCALE = 500.0  # Hounsfield units per unit: the window becomes -2 to 2
PERCENTILES = (0.5, 99.5)  # of the foreground; nnU-Net's for CT
RANGE = (-2.0, 2.0)  # what the percentiles become
EPSILON = 1e-8

# What the words of a modality or a channel's name say: T1w, T2-FLAIR, ce_T1, mr_2, CT angio.
_WORD = re.compile(r"[a-z0-9]+")
_KNOWN = {
    CT: re.compile(r"(ct|cta|ctp|cbct|ncct|cect|ldct|hu)\d*"),
    MR: re.compile(
        r"(ce|inplane)?(t1|t2|pd|t1rho)w?(ce|c|gd|km|f|flair|star|starw|map|rho)?|(m|f)?mri?\d*|fmri|mra|flair|dwi|dti|adc|swi|"
        r"tof|bold|cbv|sbref|epi|asl|m0scan|cbf|unit1|mp2rage|mprage|fieldmap|phasediff|dce|dsc|stir|spgr|gre|dixon|megre|mese"
    ),
    OTHER: re.compile(r"(pet|pt|suv|us|spect|oct|xray|histology|microscopy)\d*"),
}
_MR_UNLESS_SAID = re.compile(r"fa|md|trace|angio|perfusion|space|flash")  # of MR too, if no other word says more


def kind_of(name: str | None) -> str | None:
    """CT, MR or other for the name of a modality or channel; None where it names none that is known, or several."""
    words = _WORD.findall((name or "").casefold())
    kinds = {kind for word in words for kind, known in _KNOWN.items() if known.fullmatch(word)}
    if not kinds and any(_MR_UNLESS_SAID.fullmatch(word) for word in words):
        return MR
    return kinds.pop() if len(kinds) == 1 else None


def kinds_of_channels(channels: Sequence[str], modality: str | None = None) -> list[str | None]:
    """The kind of each channel: by the image's own modality (`T1w+FLAIR` for two), otherwise by the channel's name."""
    parts = modality.split("+") if modality else []
    parts = parts if len(parts) == len(channels) else [modality or ""] * len(channels)
    return [kind_of(part) or kind_of(name) for part, name in zip(parts, channels, strict=True)]


def schemes_for(channels: Sequence[str], modalities: Iterable[str | None] = ()) -> list[str]:
    """The scheme of each channel of a data set: one for its kind, or "each image by its own" where kinds are mixed.

    `channels` are the names in dataset.json, `modalities` the distinct ones of its images, as far as they are known.
    """
    per_image = [kinds_of_channels(channels, modality) for modality in (list(modalities) or [None])]
    columns = [{kind or OTHER for kind in column} for column in zip(*per_image, strict=True)]
    return [
        BY_KIND[column.pop()].__name__ if len(column) == 1 else SSLPerImageNormalization.__name__ for column in columns
    ]


def require_style(style: str) -> str:
    """`style` if it is one; raises CorpusError naming those that are."""
    if style not in STYLES:
        raise CorpusError(f"The normalisation is one of {', '.join(STYLES)}, found {style!r}.")
    return style


def add_modalities(cases: Mapping[str, dict[str, Any]], raw_folder: str) -> None:
    """Enter into `cases` what the table of an imported corpus says about their modality, "" where it does not say."""
    if not has_table(raw_folder):
        return
    table = read_table(raw_folder, ["case", "modality"], with_problems=True)
    for case, modality in zip(table["case"], table["modality"].fillna(""), strict=True):
        if case in cases:
            cases[case][MODALITY] = str(modality)


def distinct_modalities(raw_folder: str) -> list[str | None]:
    """The modalities that occur in an imported corpus, None for images without one; empty where there is no table."""
    if not has_table(raw_folder):
        return []
    return [name or None for name in sorted(read_table(raw_folder, ["modality"])["modality"].fillna("").unique())]


def raw_channels(
    plans: Mapping[str, Any], schemes: Sequence[str], names: Mapping[str, Any], largest: float = 10.0
) -> list[str]:
    """A warning for every channel that is left as it is though its values lie or spread far from those of the others.

    Normalised images have a standard deviation near 1, so a channel of thousands makes a loss a million times as large.
    `plans` hold the intensities of the data set's foreground; beyond `largest` (mean or deviation) a channel is warned of.
    """
    warnings = []
    for number, scheme in enumerate(schemes):
        found = (plans.get("foreground_intensity_properties_per_channel") or {}).get(str(number), {})
        deviation, mean = float(found.get("std", 0.0)), float(found.get("mean", 0.0))
        if scheme == "NoNormalization" and max(deviation, abs(mean)) > largest:
            warnings.append(
                f"channel {number} ({names.get(str(number), 'unnamed')}) is not normalised: its values have a mean of {mean:.4g} "
                f"and a standard deviation of {deviation:.4g}, where other channels have 0 and 1, and swamp the loss. Make new "
                "plans with --normalization per_image, give the channel another name than noNorm in dataset.json and preprocess "
                "again, leave it out, or take a loss on normalised targets where there is one (--set mae.normalise_target=true)."
            )
    return warnings


class ForegroundNormalization(ImageNormalization):
    """What the schemes share: an image [D, H, W] and the voxels of it that are no air and lie in the non-zero region."""

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False
    kind = OTHER

    def run(self, image: np.ndarray, seg: np.ndarray | None = None, foreground: np.ndarray | None = None) -> np.ndarray:
        """The normalised image; without `foreground` it is found as in preprocessing. `seg` is -1 outside the image."""
        image = image.astype(self.target_dtype, copy=False)
        if foreground is None:
            inside = np.ones(image.shape, dtype=bool) if seg is None else seg >= 0
            threshold = air_threshold(image, inside, self.kind)
            foreground = is_foreground(image[None], np.where(inside, 0, -1), [threshold])
        return self.scaled(image, image[foreground] if foreground.any() else image.ravel())

    def scaled(self, image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        """The normalised image, given the values of its tissue [N]."""
        raise NotImplementedError


class SSLCTNormalization(ForegroundNormalization):
    """Hounsfield units from -1000 to 1000 become -2 to 2, whatever the data set."""

    kind = CT

    def scaled(self, image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        """As in the base class."""
        return np.clip(image, *WINDOW) / SCALE


class SSLMRNormalization(ForegroundNormalization):
    """The tissue of every image is brought to mean 0 and standard deviation 1; air has no part in it."""

    kind = MR

    def scaled(self, image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        """As in the base class."""
        mean, deviation = float(tissue.mean(dtype=np.float64)), float(tissue.std(dtype=np.float64))
        return (image - mean) / max(deviation, EPSILON)


class SSLPercentileNormalization(ForegroundNormalization):
    """The percentiles 0.5 and 99.5 of the tissue of every image become -2 and 2; what is beyond is cut off."""

    def scaled(self, image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
        """As in the base class."""
        low, high = (
            float(p) for p in np.percentile(tissue, PERCENTILES)
        )  # not numpy's: they would double the precision
        unit = (np.clip(image, low, high) - low) / max(high - low, EPSILON)
        return unit * (RANGE[1] - RANGE[0]) + RANGE[0]


class SSLPerImageNormalization(ImageNormalization):
    """Each image by its own kind, which the SSLPreprocessor takes from the corpus' table or the channel's name.

    In data sets of images of one kind the planner writes the scheme of that kind instead, which needs no table.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Raises CorpusError: from the values alone nobody knows what they mean."""
        raise CorpusError(UNKNOWN_KIND)


BY_KIND: dict[str, type[ForegroundNormalization]] = {
    CT: SSLCTNormalization,
    MR: SSLMRNormalization,
    OTHER: SSLPercentileNormalization,
}
OWN = {scheme.__name__: scheme for scheme in BY_KIND.values()}
UNKNOWN_KIND = (
    "SSLPerImageNormalization normalises an image by its kind, and nothing says what kind this one is. Images of an "
    'imported corpus have a modality in corpus.parquet; elsewhere name the channel in dataset.json, e.g. "CT", "T1w" or '
    '"PET", or write SSLCTNormalization, SSLMRNormalization or SSLPercentileNormalization into the plans.'
)


def scheme_of_image(scheme: str, kind: str | None, *, registered: bool) -> str:
    """The scheme for one image where the plans say `scheme`; raises CorpusError for an unknown kind.

    Of an image that the corpus' table has (`registered`) and whose modality nobody knows, the kind is "other".
    """
    if scheme != SSLPerImageNormalization.__name__:
        return scheme
    if kind is None and not registered:
        raise CorpusError(UNKNOWN_KIND)
    return BY_KIND[kind or OTHER].__name__


def are_per_image(schemes: Iterable[str]) -> bool:
    """Whether schemes in plans are those of this module."""
    return all(scheme in OWN or scheme == SSLPerImageNormalization.__name__ for scheme in schemes)


def schemes_like(channels: Sequence[str], pretraining: Sequence[str]) -> list[str]:
    """Schemes for the channels of a data set to fine-tune on, after a pre-training with schemes of this module.

    A channel whose name says nothing gets what the pre-training had, unless that is the window of CT.
    """
    common = set(pretraining) - {SSLPerImageNormalization.__name__, SSLCTNormalization.__name__}
    unnamed = common.pop() if len(common) == 1 else SSLPercentileNormalization.__name__
    kinds = [kind_of(channel) for channel in channels]
    return [BY_KIND[kind].__name__ if kind else unnamed for kind in kinds]
