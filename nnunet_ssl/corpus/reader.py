"""nnU-Net's readers behind one door, for data sets whose files are of several kinds, 4-D, DICOM, or masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ssl.corpus.address import split_masks, split_volume
from nnunet_ssl.corpus.formats import dicom, itk, nifti, tiff
from nnunet_ssl.corpus.formats.itk import ITK
from nnunet_ssl.corpus.formats.nifti import MGH, NIFTI, PAIR
from nnunet_ssl.corpus.formats.tiff import TIFF
from nnunet_ssl.errors import UnusableImage

ENDINGS = (*NIFTI, *ITK, *PAIR, *MGH, *TIFF)
ANATOMY, ANONYMISED = 1, 2
LABELS = {"background": 0, "anatomy": ANATOMY, "anonymised": ANONYMISED}


def ending_of(path: str) -> str | None:
    """The ending of a file this reader opens by its name, in lower case; None for others, DICOM files among them."""
    lower = path.lower()
    return next((ending for ending in ENDINGS if lower.endswith(ending)), None)


class CorpusReader(BaseReaderWriter):
    """Reads NIfTI, Analyze, NRRD, MetaImage and TIFF files as nnU-Net does, MGH, DICOM series, volumes of 4-D files, masks.

    What the addresses mean is in nnunet_ssl.corpus.address. NIfTI files whose axes are not quite orthogonal, which ITK
    refuses, and those with five axes are read by nibabel, with the axes in the same order.
    """

    supported_file_endings: ClassVar[list[str]] = [*ENDINGS, *dicom.ENDINGS]

    def read_images(self, image_fnames: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """(image [C, D, H, W], properties with the spacing in mm); raises UnusableImage or what nnU-Net's readers raise."""
        parts = [split_volume(address) for address in image_fnames]
        if all(volume is None for _, volume in parts):
            return _read_files([file for file, _ in parts])
        volumes = [_read_files([file]) if volume is None else _read_volume(file, volume) for file, volume in parts]
        return _join(volumes)

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict[str, Any]]:
        """(labels [1, D, H, W], properties): a label file, or masks as 1 (anatomy) and 2 (anonymised, which wins)."""
        masks = split_masks(seg_fname)
        if not masks:
            return _read_files([seg_fname])
        labels: np.ndarray | None = None
        properties: dict[str, Any] = {}
        for role in ("anatomy", "anonymised"):
            if role not in masks:
                continue
            mask, properties = _read_files([masks[role]])
            if labels is not None and labels.shape != mask.shape:
                raise UnusableImage(f"its masks differ in shape: {list(labels.shape[1:])} and {list(mask.shape[1:])}")
            labels = np.zeros(mask.shape, np.float32) if labels is None else labels
            labels[mask > 0.5] = LABELS[role]
        assert labels is not None
        return labels, properties

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict[str, Any]) -> None:
        """As SimpleITKIO; raises KeyError for images that were not read by it."""
        SimpleITKIO().write_seg(seg, output_fname, properties)


def _read_files(files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    endings = [ending_of(file) for file in files]
    if all(ending in TIFF for ending in endings):
        return tiff.read(files)
    if any(ending is None or ending in (*MGH, *TIFF) for ending in endings):
        return _join([_read_alone(file, ending) for file, ending in zip(files, endings, strict=True)])
    try:
        return SimpleITKIO().read_images(files)
    except RuntimeError as error:
        refused = "orthonormal" in str(error) or "number of dimensions" in str(error)
        if refused and all(ending in NIFTI for ending in endings):
            return _join([nifti.read(file) for file in files])
        raise


def _read_alone(file: str, ending: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    if ending is None:
        return dicom.read(file)
    return nifti.read(file) if ending in MGH else _read_files([file])


def _read_volume(file: str, volume: str) -> tuple[np.ndarray, dict[str, Any]]:
    """One volume [1, D, H, W] of a 4-D file, or the mean of all."""
    return itk.read(file, volume) if ending_of(file) in ITK else nifti.read(file, volume)


def _join(parts: Sequence[tuple[np.ndarray, dict[str, Any]]]) -> tuple[np.ndarray, dict[str, Any]]:
    """The channels of one case as one image."""
    if len({(image.shape[1:], tuple(properties["spacing"])) for image, properties in parts}) > 1:
        raise UnusableImage("the files of its channels differ in shape or spacing")
    return np.concatenate([image for image, _ in parts]), parts[0][1]
