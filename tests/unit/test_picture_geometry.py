"""What readers note about an image, as the orientation of the preprocessed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ssl.corpus.reader import CorpusReader
from nnunet_ssl.report.geometry import Geometry
from nnunet_ssl.report.orientation import codes_of


def patient(path: Path, flips: tuple[int, ...]) -> str:
    """A head: bright where head, front and right meet; stored with some axes the other way round, which the header says."""
    image, affine = np.zeros((5, 6, 7), np.float32), np.eye(4)
    image[4, 5, 6] = 1  # NIfTI's axes grow to the right, the front and the head
    for axis in flips:
        image, affine[axis, axis] = np.flip(image, axis), -1
    nibabel.save(nibabel.Nifti1Image(image, affine), path)
    return str(path)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient, CorpusReader])
@pytest.mark.parametrize("flips", [(), (0, 1), (2,)])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_every_reader_puts_the_patient_upright(
    reader: Any, flips: tuple[int, ...], transpose: tuple[int, ...], tmp_path: Path
) -> None:
    image, noted = reader().read_images([patient(tmp_path / "a.nii.gz", flips)])
    codes = codes_of(noted, transpose)
    shown = Geometry(codes).displayed(image[0].transpose(transpose))
    assert shown.shape == (7, 6, 5)
    assert shown[0, 0, 0] == 1  # head, front and right are the first row, line and column


def test_what_says_nothing_is_not_known() -> None:
    assert codes_of({"spacing": [1, 1, 1]}, (0, 1, 2)) is None
    assert codes_of({"sitk_stuff": {"direction": (1.0, 0.0, 0.0, 1.0)}}, (0, 1, 2)) is None
    assert codes_of({"sitk_stuff": {"direction": (0.0,) * 9}}, (0, 1, 2)) is None
    assert codes_of({"orientation": None}, (0, 1, 2)) is None
    assert codes_of({"orientation": "RAS"}, (1, 0, 2)) == ("A", "S", "R")
