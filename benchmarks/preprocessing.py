"""Volumes per second of nnU-Net's own preprocessing and of ours, whole and on the same images, and whether they agree.

    python benchmarks/preprocessing.py /path/to/images --repeats 5
    python benchmarks/preprocessing.py /path/to/nnUNet_raw/Dataset004_Hippocampus --limit 20 --spacing 0.7

An image is read, cropped, normalised, resampled and written by the one and then by the other, image by image, so that both
see the same load of the machine. Times are CPU seconds of one thread, medians over the repeats. The fingerprint is not
part of it. `--profile` tells where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from glob import glob
from os.path import basename, getsize, isfile, join
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import blosc2
import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.planners.preprocessor import SSLPreprocessor
from nnunet_ssl.planners.storage import KEY, STORAGE

STEPS = {
    "read": ("read_images", "read_seg", "damage"),
    "crop": ("crop_to_nonzero",),
    "normalise": ("_normalize", "_normalise"),  # with the threshold of air
    "resample": ("resample_data_or_seg_to_shape", "resample"),
    "foreground": ("_sample_foreground_locations", "is_foreground", "sample_locations"),
    "write": ("save_case",),
}


def find_cases(data: str, limit: int | None) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Images and labels of a folder of images or of an nnU-Net data set, and its dataset.json."""
    if isfile(join(data, "dataset.json")):
        dataset_json = read_dataset_json(data)
        cases = list_images(data, dataset_json)
    else:
        dataset_json = {"channel_names": {"0": "MR"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
        files = sorted(f for f in glob(join(data, "**", "*.nii*"), recursive=True) if "_seg" not in basename(f))
        cases = {basename(f).partition(".nii")[0]: {"images": [f], "label": None} for f in files}
    if not cases:
        raise SystemExit(f"There are no images in {data}. Expected *.nii.gz or an nnU-Net data set.")
    return dict(list(cases.items())[:limit]), dataset_json


def plans_for(dataset_json: dict[str, Any], spacing: float, patch: int, storage: str) -> PlansManager:
    """Plans as nnU-Net would make them for these images, with this target spacing [mm]."""
    channels = dataset_json["channel_names"]
    resampling = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [patch] * 3,
        "spacing": [spacing] * 3,
        "normalization_schemes": ["ZScoreNormalization"] * len(channels),
        "use_mask_for_norm": [False] * len(channels),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
        KEY: storage,
    }
    return PlansManager(
        {
            "dataset_name": "benchmark",
            "plans_name": "benchmark",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "image_reader_writer": dataset_json.get("overwrite_image_reader_writer", "SimpleITKIO"),
            "label_manager": "LabelManager",
            "configurations": {"3d_fullres": configuration},
            "foreground_intensity_properties_per_channel": {str(c): {} for c in range(len(channels))},
        }
    )


def pipelines(plans: PlansManager, dataset_json: dict[str, Any], folder: str) -> dict[str, Callable[..., Any]]:
    """Functions (case, files) that make what is stored of a case, in a folder of their own."""
    configuration = plans.get_configuration("3d_fullres")
    stock, ours = DefaultPreprocessor(verbose=False), SSLPreprocessor(verbose=False)
    for name in ("nnU-Net", "ours", "ours.work"):
        os.makedirs(join(folder, name))

    def run_stock(case: str, files: dict[str, Any]) -> None:
        stock.run_case_save(
            join(folder, "nnU-Net", case), files["images"], files["label"], plans, configuration, dataset_json
        )

    def run_ours(case: str, files: dict[str, Any]) -> None:
        work, target = join(folder, "ours.work", case), join(folder, "ours")
        reason = ours.run_case_save(
            work, files["images"], files["label"], None, plans, configuration, dataset_json, target
        )
        if reason is not None:
            raise SystemExit(f"{case}: {reason}")

    return {"nnU-Net": run_stock, "ours": run_ours}


def clear(folder: str, case: str) -> None:
    """Remove what is stored of a case: blosc2 does not overwrite."""
    for path in glob(join(folder, "*", f"{case}*")):
        os.remove(path)


def compare(folder: str, cases: list[str]) -> str:
    """The largest difference of values, how many labels differ, and the sizes on the disk."""
    largest, labels, voxels = 0.0, 0, 0
    for case in cases:
        (a, a_seg), (b, b_seg) = (
            nnUNetDatasetBlosc2(join(folder, name), [case]).load_case(case)[:2] for name in ("nnU-Net", "ours")
        )
        largest = max(largest, float(np.abs(a[:] - b[:].astype(np.float32)).max()))
        labels += int((a_seg[:] != b_seg[:]).sum())
        voxels += int(np.prod(a_seg.shape))
    sizes = {n: sum(getsize(f) for f in glob(join(folder, n, "*.b2nd"))) / 1e6 for n in ("nnU-Net", "ours")}
    return (
        f"largest difference of values {largest:.1e} (standard deviation 1); labels that differ: {labels} of {voxels} voxels; "
        f"MB stored: nnU-Net {sizes['nnU-Net']:.1f}, ours {sizes['ours']:.1f}"
    )


def where_time_goes(run: Callable[..., Any], cases: dict[str, dict[str, Any]], folder: str) -> str:
    """Seconds per image of each step; cProfile adds little, the steps call few functions."""
    profile = cProfile.Profile(time.process_time)
    for case, files in cases.items():
        clear(folder, case)
        profile.runcall(run, case, files)
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    outermost = {
        step: sum(entry[3] for key, entry in stats.items() if key[2] in names and not _inner(key, entry, names))
        for step, names in STEPS.items()
    }
    return ", ".join(f"{step} {seconds / len(cases):.3f}" for step, seconds in outermost.items())


def _inner(key: tuple[str, int, str], entry: Any, names: tuple[str, ...]) -> bool:
    """Whether a function is called by another of its own step, which has counted it."""
    return all(caller[2] in names for caller in entry[4]) and bool(entry[4])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder of NIfTI images, or an nnU-Net data set with labels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, help="number of images")
    parser.add_argument("--spacing", type=float, default=1.0, help="target in mm, all axes (default: 1)")
    parser.add_argument("--patch", type=int, default=160, help="edge of the patch the files are cut for (default: 160)")
    parser.add_argument("--storage", choices=STORAGE, default=STORAGE[0])
    parser.add_argument("--profile", action="store_true", help="also say where the time goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    cases, dataset_json = find_cases(args.data, args.limit)
    plans = plans_for(dataset_json, args.spacing, args.patch, args.storage)
    with tempfile.TemporaryDirectory() as folder:
        runs = pipelines(plans, dataset_json, folder)
        totals: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(args.repeats + 1):
            seconds = dict.fromkeys(runs, 0.0)
            for case, files in cases.items():
                clear(folder, case)
                for name in runs if repeat % 2 else reversed(list(runs)):
                    begin = time.process_time()
                    runs[name](case, files)
                    seconds[name] += time.process_time() - begin
            if repeat:  # the first round reads the files into the system's cache and builds the matrices
                for name, total in seconds.items():
                    totals[name].append(total)
        medians = {name: statistics.median(values) for name, values in totals.items()}
        for name, values in totals.items():
            spread = f"{len(cases) / max(values):.2f} to {len(cases) / min(values):.2f}"
            print(
                f"{name}: {len(cases) / medians[name]:.2f} volumes per CPU second ({spread} in {args.repeats} repeats)"
            )
        print(f"ours is {medians['nnU-Net'] / medians['ours']:.1f} times as fast on {len(cases)} images")
        print(compare(folder, list(cases)))
        if args.profile:
            for name, run in runs.items():
                print(f"seconds per image, {name}: {where_time_goes(run, cases, folder)}")


if __name__ == "__main__":
    main()
