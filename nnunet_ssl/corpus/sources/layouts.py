"""How public data sets lie on the disk: which files are images, which are label maps, and whose.

One entry per layout. To teach another one, add a line: patterns of paths below the data set's folder, without their ending.
The group `case` ties a label map to its image; `modality` and `subject` are taken over where there are such groups.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import basename, dirname, relpath

from nnunet_ssl.corpus.reader import ending_of


@dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on the disk."""

    name: str
    image: re.Pattern[str]
    label: re.Pattern[str]
    modality: str | None = None

    def __init__(self, name: str, image: str, label: str, modality: str | None = None) -> None:
        for key, value in (
            ("name", name),
            ("image", re.compile(image)),
            ("label", re.compile(label)),
            ("modality", modality),
        ):
            object.__setattr__(self, key, value)


# What paths may begin with, such as the archive's own folder; a case's image and label map have it in common.
_TOP = r"(?P<top>(?:.*/)?)"
LAYOUTS = (
    Layout(
        "nnU-Net",
        rf"{_TOP}images(?P<part>Tr|Ts)/(?P<case>.+)_\d{{4}}",
        rf"{_TOP}(?:labels|inferred)(?P<part>Tr|Ts)/(?P<case>.+)",
    ),
    Layout(
        "Medical Decathlon",
        rf"{_TOP}images(?P<part>Tr|Ts)/(?P<case>[^/]+)",
        rf"{_TOP}labels(?P<part>Tr|Ts)/(?P<case>[^/]+)",
    ),
    Layout(
        "KiTS",
        rf"{_TOP}(?P<case>case_\d{{5}})/imaging",
        rf"{_TOP}(?P<case>case_\d{{5}})/(?:segmentation|aggregated_\w+_seg|(?:segmentations|instances)/.+)",
        "CT",
    ),
    Layout("LiTS", rf"{_TOP}volume-(?P<case>\d+)", rf"{_TOP}segmentation-(?P<case>\d+)", "CT"),
    Layout("BTCV", rf"{_TOP}img/img(?P<case>\d+)", rf"{_TOP}label/label(?P<case>\d+)", "CT"),
    Layout(
        "TotalSegmentator",
        rf"{_TOP}(?P<case>s\d{{4}})/(?P<modality>ct|mri)",
        rf"{_TOP}(?P<case>s\d{{4}})/segmentations/.+",
    ),
    Layout(
        "ACDC",
        rf"{_TOP}(?P<case>(?P<subject>patient\d+)_(?:frame\d+|4d))",
        rf"{_TOP}(?P<case>patient\d+_frame\d+)_gt",
    ),
    Layout(
        "VerSe",
        # rawdata/ and derivatives/ differ, the numbers of subjects do not.
        r"(?:.*/)?(?P<case>(?P<subject>sub-[A-Za-z0-9]+)(?:_(?!seg-)[A-Za-z]+-[A-Za-z0-9]+)*)_(?P<modality>ct)",
        r"(?:.*/)?(?P<case>sub-[A-Za-z0-9]+(?:_(?!seg-)[A-Za-z]+-[A-Za-z0-9]+)*)_seg-(?:vert|subreg)_msk",
    ),
)

# Beyond the layouts: names of files, and of folders, that hold segmentations wherever they are.
LABEL_FILE = re.compile(
    r"(?:.*[_-])?(?:seg|dseg|probseg|segmentation|label|labels|mask|[a-z]*mask|msk|roi|gt|ground[_-]?truth|annotation)"
    r"|(?:segmentation|label|labels|mask|seg)[_-]?\d+",
    re.IGNORECASE,
)
LABEL_FOLDER = re.compile(
    r"labels?(?:tr|ts|val|s)?|segmentations?|segs?|masks?|gt|ground[_ -]?truth|annotations?|contours|inferredts",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sorted:
    """The files of a folder: images, label maps, {image: its label map}, and {image: what its path says of it}."""

    images: list[str]
    labels: list[str]
    label_of: dict[str, str]
    about: dict[str, dict[str, str]]
    layout: str | None


def sort_files(files: Sequence[str], root: str) -> Sorted:
    """Tell images from label maps by where they lie and what they are called."""
    stems = {file: relpath(file, root)[: -len(ending_of(file) or "")].replace(os.sep, "/") for file in files}
    layout = next((layout for layout in LAYOUTS if _is_laid_out(layout, stems.values())), None)
    about: dict[str, dict[str, str]] = {}
    by_case: dict[tuple[str | None, ...], list[str]] = {}
    key_of: dict[str, tuple[str | None, ...]] = {}
    labels = []
    for file, stem in stems.items():
        as_label = layout.label.fullmatch(stem) if layout else None
        as_image = layout.image.fullmatch(stem) if layout else None
        if as_label or (not as_image and called_like_a_label(stem)):
            labels.append(file)
            if as_label:
                by_case.setdefault(_key(as_label), []).append(file)
        elif layout and as_image:
            said = {k: v for k, v in as_image.groupdict().items() if v is not None and k in ("subject", "modality")}
            said |= {"modality": layout.modality} if layout.modality else {}
            about[file] = {k: v.upper() if k == "modality" else v for k, v in said.items()}
            key_of[file] = _key(as_image)
    # Of a folder of one mask per organ none is the label map.
    label_of = {file: by_case[key][0] for file, key in key_of.items() if len(by_case.get(key, ())) == 1}
    there = set(labels)
    return Sorted([f for f in files if f not in there], labels, label_of, about, layout.name if layout else None)


def called_like_a_label(stem: str) -> bool:
    """Whether a path (below the folder that was named, without ending) is called like a segmentation or mask."""
    folders = dirname(stem).split("/") if dirname(stem) else []
    return bool(LABEL_FILE.fullmatch(basename(stem)) or any(LABEL_FOLDER.fullmatch(folder) for folder in folders))


def _is_laid_out(layout: Layout, stems: Iterable[str]) -> bool:
    """Whether there are both, images and label maps of one case, and nothing that is clearly something else."""
    images, labels, others = set(), set(), 0
    for stem in stems:
        if match := layout.label.fullmatch(stem):
            labels.add(_key(match))
        elif match := layout.image.fullmatch(stem):
            images.add(_key(match))
        else:
            others += 1
    return bool(images & labels) and others <= len(images) + len(labels)


def _key(match: re.Match[str]) -> tuple[str | None, ...]:
    groups = match.groupdict()
    return groups.get("top"), groups.get("part"), groups["case"]
