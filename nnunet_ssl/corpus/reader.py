"""nnU-Net's readers behind one door, for data sets whose files are of several kinds, 4-D, or masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os.path import isfile
from typing import Any, ClassVar

import nibabel
import numpy as np
import tifffile
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ssl.corpus.address import MEAN, split_masks, split_volume
from nnunet_ssl.corpus.errors import UnusableImage

NIFTI = (".nii.gz", ".nii")
TIFF = (".tif", ".tiff")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl")
ENDINGS = (*NIFTI, *ITK, *TIFF)
ANATOMY, ANONYMISED = 1, 2
LABELS = {"background": 0, "anatomy": ANATOMY, "anonymised": ANONYMISED}


def ending_of(path: str) -> str | None:
    """The ending of a file this reader opens, in lower case; None for others."""
    lower = path.lower()
    return next((ending for ending in ENDINGS if lower.endswith(ending)), None)


class CorpusReader(BaseReaderWriter):
    """Reads NIfTI, NRRD, MetaImage and TIFF files as nnU-Net does, volumes of 4-D files, and pairs of masks.

    What the addresses mean is in nnunet_ssl.corpus.address. NIfTI files whose axes are not quite orthogonal, which ITK
    refuses, are read by nibabel, with the axes in the same order.
    """

    supported_file_endings: ClassVar[list[str]] = list(ENDINGS)

    def read_images(self, image_fnames: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """(image [C, D, H, W], properties with the spacing in mm); raises UnusableImage or what nnU-Net's readers raise."""
        parts = [split_volume(address) for address in image_fnames]
        if all(volume is None for _, volume in parts):
            return _read_files([file for file, _ in parts])
        volumes = [_read_files([file]) if volume is None else _read_volume(file, volume) for file, volume in parts]
        if len({(image.shape[1:], tuple(properties["spacing"])) for image, properties in volumes}) > 1:
            raise UnusableImage("the files of its channels differ in shape or spacing")
        return np.concatenate([image for image, _ in volumes]), volumes[0][1]

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


def tiff_spacing(path: str) -> list[float] | None:
    """The spacing [mm] in the JSON file that nnU-Net expects beside a TIFF, with or without the channel's number."""
    stem = path[: path.rindex(".")]
    without_channel = stem[:-5] if stem[-5:-4] == "_" and stem[-4:].isdigit() else stem
    for candidate in (f"{stem}.json", f"{without_channel}.json"):
        if isfile(candidate):
            with open(candidate, encoding="utf-8") as file:
                content = json.load(file)
            if isinstance(content, dict) and "spacing" in content:
                return [float(s) for s in content["spacing"]]
    return None


def _read_files(files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    if all(file.lower().endswith(TIFF) for file in files):
        return _read_tiffs(files)
    try:
        return SimpleITKIO().read_images(files)
    except RuntimeError as error:
        if "orthonormal" in str(error) and all(file.lower().endswith(NIFTI) for file in files):
            return NibabelIO().read_images(files)
        raise


def _read_tiffs(files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    images = [np.asarray(tifffile.imread(file), dtype=np.float32) for file in files]
    for image in images:
        if image.ndim != 3 or image.shape != images[0].shape:
            raise UnusableImage(f"not a volume: shape {list(image.shape)}, expected [depth, height, width]")
    return np.stack(images), {"spacing": tiff_spacing(files[0]) or [1.0, 1.0, 1.0]}


def _read_volume(file: str, volume: str) -> tuple[np.ndarray, dict[str, Any]]:
    """One volume [1, D, H, W] of a 4-D file, or the mean of all."""
    if not file.lower().endswith(NIFTI):
        series, properties = _read_files([file])
        return (
            series.mean(axis=0, keepdims=True) if volume == MEAN else series[[_index(volume, len(series))]]
        ), properties
    # nibabel unpacks no more of the file than it must, and keeps one volume in memory.
    image: Any = nibabel.load(file, keep_file_open=True)
    shape = image.shape
    if len(shape) < 4:
        raise UnusableImage(f"not a series: shape {list(shape)}, but {volume!r} of its volumes is asked for")
    if volume == MEAN:
        total = np.zeros(shape[:3], np.float64)
        for number in range(shape[3]):
            total += np.asarray(image.dataobj[..., number]).reshape(shape[:3])
        array = total / shape[3]
    else:
        array = np.asarray(image.dataobj[..., _index(volume, shape[3])]).reshape(shape[:3])
    spacing = [float(s) for s in image.header.get_zooms()[:3][::-1]]
    return np.ascontiguousarray(array.transpose(2, 1, 0)[None], dtype=np.float32), {"spacing": spacing}


def _index(volume: str, available: int) -> int:
    if int(volume) >= available:
        raise UnusableImage(f"has {available} volumes, number {volume} (counted from 0) is asked for")
    return int(volume)
