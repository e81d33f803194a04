"""How an image lies in the patient, from what nnU-Net's readers noted of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_ssl.corpus.formats.header import ORIENTATION, orientation_of
from nnunet_ssl.errors import UnusableImage


def codes_of(properties: Mapping[str, Any], transpose: Sequence[int]) -> tuple[str, ...] | None:
    """Per axis of an image the side of the patient to which it grows, from what its reader noted, else None.

    The image is as it was read, or preprocessed. transpose: the plans' order of the axes. Files have their axes in the
    other order than arrays.
    """
    try:
        if "sitk_stuff" in properties:
            direction = np.asarray(properties["sitk_stuff"]["direction"], dtype=float)
            if direction.size != 9:
                return None  # a 2D file says nothing about the patient
            letters = orientation_of(np.diag([-1, -1, 1]) @ direction.reshape(3, 3))
        elif "nibabel_stuff" in properties:
            noted = properties["nibabel_stuff"]
            affine = noted["reoriented_affine"] if "reoriented_affine" in noted else noted["original_affine"]
            letters = orientation_of(np.asarray(affine, dtype=float)[:3, :3])
        else:
            letters = properties[ORIENTATION] or ""
        return tuple(letters[::-1][axis] for axis in transpose)
    except (KeyError, IndexError, UnusableImage):
        return None
