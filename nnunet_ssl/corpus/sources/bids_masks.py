"""Which masks of a BIDS data set belong to which image."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os.path import abspath, basename, relpath
from typing import Any, NamedTuple

from nnunet_ssl.corpus.headers import read_header
from nnunet_ssl.corpus.reader import ending_of
from nnunet_ssl.corpus.sources.found import Mistake
from nnunet_ssl.corpus.sources.walking import walk_files
from nnunet_ssl.corpus.subjects import MODALITY
from nnunet_ssl.errors import UnusableImage
from nnunet_ssl.files.entering import why_no_file

MASK = re.compile(r"_(?:[a-z]*mask)$", re.IGNORECASE)
ANONYMISED = re.compile(r"deface|defacing|anon|face", re.IGNORECASE)
ANATOMY = re.compile(r"brain|head|body|anat|skull", re.IGNORECASE)
# Entities that say how a mask was made or what it shows, and nothing about the image it belongs to.
OF_THE_MASK = ("desc", "label", "res", "den", "atlas", "mod", "space")
NATIVE = ("orig", "individual", "native")


class Mask(NamedTuple):
    """A mask, what it shows, and what its name says about its image."""

    path: str
    role: str
    entities: Mapping[str, str]
    modality: str | None
    folder: str


def find_masks(root: str) -> tuple[list[Mask], list[Mistake]]:
    """All masks below sub-*/ and derivatives/ of a BIDS data set, without those in a template's space."""
    masks, mistakes = [], []
    tops = [
        e.path
        for e in os.scandir(abspath(root))
        if e.is_dir() and (e.name.startswith("sub-") or e.name == "derivatives")
    ]
    for top in sorted(tops):
        for path in walk_files(top):
            stem = basename(path)[: -len(ending_of(path) or "")]
            if not ending_of(path) or not MASK.search(stem):
                continue
            if reason := why_no_file(path):
                mistakes.append(Mistake(relpath(path, root), reason))
                continue
            mask = _describe(path, stem)
            if mask is not None:
                masks.append(mask)
    return masks, mistakes


def assign_masks(rows: Sequence[dict[str, Any]], masks: Sequence[Mask]) -> list[str]:
    """Enter the masks into the rows of their images; returns the paths of those that belong to none.

    A mask belongs to the images of the same folder below sub-<label> whose names have all entities that its own has and,
    where it names one, its modality; without a modality, to those with its number of voxels.
    """
    by_folder: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_folder[row["subject"], basename(os.path.dirname(row["path"]))].append(row)
    left = []
    for mask in masks:
        candidates = [
            row
            for row in by_folder[f"sub-{mask.entities.get('sub')}", mask.folder]
            if mask.entities.items() <= row["entities"].items() and mask.modality in (None, row["modality"])
        ]
        if mask.modality is None:
            candidates = [row for row in candidates if _same_grid(mask.path, row["path"])]
        free = [row for row in candidates if mask.role not in row]
        for row in free:
            row[mask.role] = mask.path
        if not free:
            left.append(mask.path)
    return left


def _describe(path: str, stem: str) -> Mask | None:
    parts = stem.split("_")
    entities = {key: value for key, hyphen, value in (part.partition("-") for part in parts[:-1]) if hyphen}
    space = entities.get("space", NATIVE[0])
    space_of_image = space if MODALITY.fullmatch(f"_{space}") else None
    if space not in NATIVE and space_of_image is None:
        return None
    says = f"{entities.get('desc', '')} {entities.get('label', '')} {parts[-1]}"
    role = "anonymisation_mask" if ANONYMISED.search(says) else "anatomy_mask" if ANATOMY.search(says) else None
    if role is None:
        return None
    # sub-01_mod-T1w_defacemask, or sub-01_T1w_desc-brain_mask as some tools write it.
    modality = entities.get("mod") or next((p for p in parts[1:-1] if "-" not in p), space_of_image)
    own = {key: value for key, value in entities.items() if key not in OF_THE_MASK}
    return Mask(path, role, own, modality, basename(os.path.dirname(path)))


def _same_grid(mask: str, image: str) -> bool:
    try:
        return read_header(mask).shape == read_header(image).shape
    except UnusableImage:
        return False
