"""Which of nnU-Net's readers fits, what is wrong with a file that cannot be read, and files that only seem fine."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any, TypeVar

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_ssl.corpus.address import split_masks, split_volume
from nnunet_ssl.corpus.formats.units import NIFTI, count_not_finite, in_millimetres
from nnunet_ssl.errors import UnusableImage
from nnunet_ssl.files.entering import why_no_content, why_no_file

T = TypeVar("T")
NUM_TRIED = 20  # images tried until one can be read
MAX_REASON = 240  # characters
NOT_FINITE = "not_finite"  # in an image's properties: how many of its values were NaN or infinite and count as 0


def choose_reader(dataset_json: dict[str, Any], cases: Mapping[str, Mapping[str, Any]]) -> type:
    """nnU-Net's reader for a dataset: the one that opens the first readable image, so that one bad file decides nothing.

    Raises RuntimeError when nnU-Net has no reader for the file ending.
    """
    for case in list(cases.values())[:NUM_TRIED]:
        if any(map(damage, case["images"])):
            continue
        try:
            with redirect_stderr(io.StringIO()):  # nnU-Net prints a traceback for every reader that fails
                return determine_reader_writer_from_dataset_json(dataset_json, case["images"][0], verbose=False)
        except RuntimeError:
            continue
    return determine_reader_writer_from_dataset_json(dataset_json, verbose=False)


def damage(path: str) -> str | None:
    """Why a path is no file, or what is missing of a NIfTI file; None when all of it is there or it is another format.

    `path` may be the address of one volume. ITK fills the missing part of a truncated .nii or .nii.gz with zeros and says
    nothing; it does notice for other formats.
    """
    path = split_volume(path)[0]
    reason = why_no_file(path) or why_no_content(path)
    if reason:
        return reason
    if not path.lower().endswith((".nii", ".nii.gz")):
        return None
    try:
        image: Any = nibabel.load(path)
        values = int(np.prod(image.shape))
        return cut_off(path, int(image.dataobj.offset) + values * image.get_data_dtype().itemsize)
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError):
        return _damaged_stream(path) if path.lower().endswith(".gz") else None


def cut_off(path: str, expected: int) -> str | None:
    """What is missing of a NIfTI file whose header announces `expected` bytes, unpacked; None when all of it is there."""
    size = os.path.getsize(path)
    if not path.lower().endswith(".gz"):
        return f"truncated: {size} bytes, the header announces {expected}" if size < expected else None
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        unpacked = int.from_bytes(file.read(4), "little")  # gzip's own last word: the unpacked size modulo 2**32
    return None if unpacked == expected % 2**32 else _damaged_stream(path, expected)


def _damaged_stream(path: str, expected: int = 0) -> str | None:
    """As `cut_off`, by unpacking all of a gzip file, which is slow but knows files that were packed in several pieces."""
    unpacked = 0
    try:
        with gzip.open(path) as file:
            while chunk := file.read(2**20):
                unpacked += len(chunk)
    except (EOFError, zlib.error) as error:
        return f"truncated or damaged gzip file: {error}"
    except OSError as error:
        return f"not a gzip file: {error}"
    return f"truncated: {unpacked} bytes unpacked, the header announces {expected}" if unpacked < expected else None


def describe_failure(error: BaseException) -> str:
    """One line for whatever a reader raised."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = re.sub(r"^Exception thrown in SimpleITK.*?(?:sitk::ERROR:|ITK ERROR:)\s*", "", text)
    if not text:
        # nnU-Net prints the particulars and raises an empty RuntimeError
        text = "the files of its channels do not fit together" if isinstance(error, RuntimeError) else "no message"
    text = text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."
    return (
        f"cannot be read: {text}" if isinstance(error, (RuntimeError, OSError)) else f"{type(error).__name__}: {text}"
    )


def or_reason(make: Callable[[], T]) -> T | str:
    """What `make` returns, or why the image it works on cannot be used; a full memory is no image's fault."""
    try:
        return make()
    except MemoryError:
        raise
    except UnusableImage as error:
        return str(error)
    except Exception as error:
        return describe_failure(error)


def read_label(reader: type, label: str | None, shape: Sequence[int]) -> tuple[np.ndarray | None, str | None]:
    """(labels [1, D, H, W] of an image of `shape` [C, D, H, W], None) or (None, why there are none that can be used).

    What is wrong with a label costs the label and not the image. Masks of an imported corpus are no labels: they say which
    voxels are no image at all, so UnusableImage is raised where they are wrong.
    """
    if label is None:
        return None, None
    masks = bool(split_masks(label))
    try:
        reason = None if masks else damage(label)
        labels = None if reason else reader().read_seg(label)[0]
    except MemoryError:
        raise
    except Exception as error:
        if masks:
            raise
        labels, reason = None, describe_failure(error)
    if labels is not None and tuple(labels.shape[1:]) != tuple(shape[1:]):
        reason = f"image and label differ in shape: {list(shape[1:])} and {list(labels.shape[1:])}"
        if masks:
            raise UnusableImage(reason)
    return (labels, None) if reason is None else (None, reason)


def read_case(reader: type, images: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """(image [C, D, H, W], properties) by nnU-Net's reader, spacing in mm; raises UnusableImage for what is cut off.

    NaN and infinite values become 0, as ITK makes them in NIfTI files without saying so; `properties[NOT_FINITE]` counts
    them, where there are any.
    """
    for path in images:
        reason = damage(path)
        if reason:
            raise UnusableImage(reason)
    data, properties = reader().read_images(images)
    if reader in (NibabelIO, NibabelIOWithReorient):
        properties["spacing"] = in_millimetres(images[0], properties["spacing"])
    finite = np.isfinite(data)
    number = data.size - int(np.count_nonzero(finite))
    if number:
        data = np.where(finite, data, 0)
    elif not data.all():  # among zeros there may be such as ITK has put there
        number = sum(count_not_finite(path) for path in images if path.lower().endswith(NIFTI))
    if number:
        properties[NOT_FINITE] = number
    return data, properties
