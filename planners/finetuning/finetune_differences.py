"""Where a fine-tuning shows its network other images than the pre-training did, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ssl.checkpoints.adaptation.channels import CHANNEL_MODES
from nnunet_ssl.checkpoints.description.conventions import Conventions

UNSTATED = "not stated"
NOTICEABLE = 1.25  # ratio of spacings that augmentation (zoom 0.7 to 1.4) does not simply cover
MEANING = {
    "CTNormalization": "clipped and scaled as Hounsfield units of this data set",
    "ZScoreNormalization": "each image brought to mean 0 and standard deviation 1",
    "RescaleTo01Normalization": "each image stretched to 0 to 1",
    "RGBTo01Normalization": "colours divided by 255",
    "NoNormalization": "left as it is",
    "SSLCTNormalization": "-1000 to 1000 Hounsfield units become -2 to 2",
    "SSLMRNormalization": "the tissue of each image brought to mean 0 and standard deviation 1",
    "SSLPercentileNormalization": "percentiles of the tissue of each image become -2 and 2",
    "SSLPerImageNormalization": "each image by its own kind: CT, MR or other",
}


def comparison(
    conventions: Conventions, num_channels_before: int | None, plans: Mapping[str, Any], configuration: str
) -> str:
    """Table of pre-training and plans side by side."""
    settings = plans["configurations"][configuration]
    spacing = f"{times(conventions.spacing)}{'' if conventions.resampled else ' (median; not resampled)'}"
    here = times(settings["spacing"])
    if not is_resampled(settings):
        here += " (median; not resampled)"
    rows = [
        ("", "pre-training", "these plans"),
        ("spacing [mm]", spacing if conventions.spacing else _unresampled(conventions), here),
        ("patch [voxels]", times(conventions.patch_size), times(settings["patch_size"])),
        ("normalisation", _list(conventions.normalization), _list(settings["normalization_schemes"])),
        ("order of axes", times(conventions.transpose_forward, ", "), times(plans["transpose_forward"], ", ")),
        ("input channels", str(num_channels_before or UNSTATED), str(len(settings["normalization_schemes"]))),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def differences(
    conventions: Conventions,
    num_channels_before: int | None,
    plans: Mapping[str, Any],
    configuration: str,
    channel_names: Sequence[str],
) -> list[str]:
    """Sentences about every difference a user should know of; empty where all is as in the pre-training."""
    settings = plans["configurations"][configuration]
    found = [*_normalisation(conventions, settings["normalization_schemes"], channel_names)]
    found += _spacing(conventions, settings)
    found += _axes(conventions, plans)
    channels = len(settings["normalization_schemes"])
    if num_channels_before is not None and num_channels_before != channels:
        found.append(
            f"Pre-trained on {num_channels_before} input channel{'s' * (num_channels_before > 1)}, this data set has "
            f"{channels}: the first layer's kernels are repeated over them, so that the network answers as before "
            f'("channels" in the plans\' finetune block; others: {", ".join(CHANNEL_MODES[1:])}).'
        )
    return found


def is_resampled(settings: Mapping[str, Any]) -> bool:
    """Whether a configuration brings images to its spacing."""
    return settings["resampling_fn_data"] != "no_resampling_hack"


def times(values: Sequence[float] | None, sign: str = " x ") -> str:
    """1 x 1 x 1, or that it is not stated."""
    return UNSTATED if values is None else sign.join(f"{v:g}" for v in values)


def _list(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names)) or UNSTATED


def _unresampled(conventions: Conventions) -> str:
    return "not resampled" if conventions.resampled is False else UNSTATED


def _normalisation(conventions: Conventions, schemes: Sequence[str], names: Sequence[str]) -> list[str]:
    before = list(dict.fromkeys(conventions.normalization))
    if not before:
        return [
            "The file does not say how the images of the pre-training were normalised. These plans use "
            f"{_list(schemes)}; where the pre-training saw values of another range, less of it carries over."
        ]
    images = _images(conventions)
    found = []
    for number, (scheme, name) in enumerate(zip(schemes, names, strict=True)):
        if scheme in before:
            continue
        sentence = (
            f"Pre-trained on {images} normalised by {', '.join(before)}"
            f"{f' ({MEANING[before[0]]})' if len(before) == 1 and before[0] in MEANING else ''}; your channel {number} "
            f'("{name}") is normalised by {scheme} ({MEANING.get(scheme, scheme)}).'
        )
        if scheme == "CTNormalization":
            sentence += (
                " This is kept, because Hounsfield units carry meaning that a z-score of every image would throw away; "
                "air, fat and bone then have other values than the network is used to, so expect less from the "
                "pre-training than on MR."
            )
        elif "CTNormalization" in before:
            sentence += (
                " This is kept, because the channel is not named CT in dataset.json. If it does hold Hounsfield units, "
                'name it "CT" there and plan again.'
            )
        else:
            sentence += " Both are kept as they are: expect less from the pre-training on this channel."
        found.append(sentence)
    return found


def _images(conventions: Conventions) -> str:
    names = list(dict.fromkeys(conventions.channel_names))
    return f"{', '.join(names)} images" if names else "images"


def _spacing(conventions: Conventions, settings: Mapping[str, Any]) -> list[str]:
    if conventions.resampled is None:
        return ["The file does not state the spacing of its pre-training; it cannot be compared with these plans."]
    if not conventions.resampled:
        return []  # it has seen every spacing
    if not is_resampled(settings):
        return [
            f"Pre-trained at {times(conventions.spacing)} mm; here every image keeps its own spacing, so structures come in "
            "sizes the network may not know. --adapt like_pretrained resamples to the pre-training's spacing."
        ]
    before, now = conventions.spacing or (), settings["spacing"]
    if len(before) != len(now):
        return []
    ratios = [b / a for b, a in zip(before, now, strict=True)]
    if all(1 / NOTICEABLE <= r <= NOTICEABLE for r in ratios):
        return []
    most = max(ratios, key=lambda r: max(r, 1 / r))
    size = f"{most:.3g} times as many" if most > 1 else f"only 1/{1 / most:.3g} of the"
    where = "along every axis" if max(ratios) <= NOTICEABLE * min(ratios) else "along one axis"
    return [
        f"Pre-trained at {times(before)} mm, these plans use {times(now)} mm: {where} a structure takes up {size} "
        "voxels. --adapt like_pretrained plans with the pre-training's spacing."
    ]


def _axes(conventions: Conventions, plans: Mapping[str, Any]) -> list[str]:
    found = []
    before, now = conventions.transpose_forward, tuple(plans["transpose_forward"])
    if before is not None and before != now:
        found.append(
            f"The images' axes are in another order: {times(before, ', ')} in the pre-training, {times(now, ', ')} here "
            "(nnU-Net puts the axis with the largest spacing first), so the network sees bodies from another side."
        )
    reader, own = conventions.reader, str(plans["image_reader_writer"])
    if reader is not None and ("Reorient" in reader) != ("Reorient" in own):
        found.append(
            f"Images were read by {reader} in the pre-training and are read by {own} here: one turns them to standard "
            'orientation, the other does not. "overwrite_image_reader_writer" in dataset.json chooses the reader.'
        )
    return found
