"""Artificial images as nnU-Net's preprocessing leaves them, with the plans of any preset, to measure training without data."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from os.path import join
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_ssl.corpus.environment import environment
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.planners.patch_size import require_patch_size
from nnunet_ssl.planners.prepare import find_planner
from nnunet_ssl.planners.preprocessing.storage import save_case, storage_dtype
from nnunet_ssl.planners.ssl_planner import CONFIGURATION

DATASET = "Dataset999_Synthetic"
MARGIN = 1.25  # edge of the images in patches; whole heads at 1 mm have about that to patches of 160
DESCRIPTION = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "structure": 1}, "file_ending": ".nii.gz"}
STATISTICS = {"mean": 0, "median": 0, "std": 1, "min": -3, "max": 3, "percentile_99_5": 3, "percentile_00_5": -3}


@contextmanager
def synthetic_dataset(
    folder: str,
    planner: str,
    patch_size: Sequence[int] | None,
    region_of: Callable[[Sequence[int]], Sequence[int]] | None = None,
    cases: int = 8,
) -> Iterator[dict[str, Any]]:
    """Plans of the planner for a data set of `cases` preprocessed images in `folder`, while nnU-Net's folders are there.

    patch_size: voxels per axis, by default the preset's. region_of: voxels that a method reads at once for a patch size, by
    default the patch; the images are a quarter larger. Raises CorpusError for patches that do not fit the network.
    """
    preset = find_planner(planner).preset
    patch = require_patch_size([preset.patch_edge] * 3 if patch_size is None else patch_size, preset.stride)
    region = patch if region_of is None else region_of(patch)
    shape = [round(MARGIN * max(p, r)) for p, r in zip(patch, region, strict=True)]
    folders = {f"nnUNet_{which}": join(folder, which) for which in ("raw", "preprocessed")}
    with environment(folders):
        _write_descriptions(folders, shape, cases)
        with redirect_stdout(io.StringIO()):
            plans = find_planner(planner)(DATASET, patch_size=patch).plan_experiment()
        configuration = plans["configurations"][CONFIGURATION]
        target = join(folders["nnUNet_preprocessed"], DATASET, configuration["data_identifier"])
        os.makedirs(target)
        for number in range(cases):
            _write_case(join(target, f"synthetic_{number:02d}"), shape, patch, storage_dtype(configuration), number)
        yield plans


def _write_descriptions(folders: Mapping[str, str], shape: Sequence[int], cases: int) -> None:
    """What the planner reads: dataset.json, the fingerprint, and one image file to choose the reader by."""
    images = join(folders["nnUNet_raw"], DATASET, "imagesTr")
    os.makedirs(images)
    os.makedirs(join(folders["nnUNet_preprocessed"], DATASET))
    write_json({**DESCRIPTION, "numTraining": cases}, join(folders["nnUNet_raw"], DATASET, "dataset.json"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8), np.float32)), join(images, "synthetic_00_0000.nii.gz"))
    fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * cases,
        "shapes_after_crop": [list(shape)] * cases,
        "foreground_intensity_properties_per_channel": {"0": STATISTICS},
        "median_relative_size_after_cropping": 1.0,
    }
    write_json(fingerprint, join(folders["nnUNet_preprocessed"], DATASET, "dataset_fingerprint.json"))


def _write_case(path: str, shape: Sequence[int], patch: Sequence[int], dtype: np.dtype[Any], seed: int) -> None:
    """A smooth body with fine noise in an empty surrounding: it compresses about as well as a real image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *(max(2, s // 8) for s in shape), generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=tuple(shape), mode="trilinear")[0]
    image += 0.1 * torch.randn(image.shape, generator=generator)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, s) for s in shape), indexing="ij")
    inside = torch.stack([a.square() for a in axes]).sum(0) < 0.8
    data = torch.where(inside, image, 0).numpy()
    seg = np.where(inside, 0, -1).astype(np.int16)[None]
    save_case(data, seg, {"spacing": [1.0, 1.0, 1.0], "class_locations": {}}, path, patch, dtype)
