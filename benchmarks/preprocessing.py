"""Volumes per second of nnU-Net's own preprocessing and of ours, whole and on the same images, and whether they agree.

    python benchmarks/preprocessing.py /path/to/images --repeats 5
    python benchmarks/preprocessing.py /path/to/nnUNet_raw/Dataset004_Hippocampus --limit 20 --spacing 0.7
    python benchmarks/preprocessing.py /path/to/images --nnssl NNSSL_PYTHON

An image is read, cropped, normalised, resampled and written by the one and then by the other, image by image, so that both
see the same load of the machine. Times are CPU seconds of one thread, medians over the repeats. The fingerprint is not
part of it. `--profile` tells where the time goes. `--nnssl` adds nnssl's preprocessing, in turn with the two
(preprocessing_nnssl.py says what it does and leaves out; against_nnssl.py, which Python).
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
from contextlib import ExitStack
from functools import partial
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
from preprocessing_nnssl import Peer

from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.planners.preprocessing.storage import KEY, STORAGE
from nnunet_ssl.planners.preprocessor import SSLPreprocessor

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
    for path in glob(join(folder, "**", f"{case}*"), recursive=True):
        if isfile(path):
            os.remove(path)


def cpu_seconds(run: Callable[..., Any], case: str, files: dict[str, Any]) -> float:
    """CPU seconds of this process for a case."""
    begin = time.process_time()
    run(case, files)
    return time.process_time() - begin


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


def compare_nnssl(folder: str, cases: list[str], peer: Peer) -> str:
    """The largest differences of nnssl's values from those of both others, and its size on the disk."""
    largest = {"nnU-Net": 0.0, "ours": 0.0}
    for case in cases:
        theirs = blosc2.open(peer.stored(case), mode="r")[:]
        for name in largest:
            values = nnUNetDatasetBlosc2(join(folder, name), [case]).load_case(case)[0][:].astype(np.float32)
            if values.shape != theirs.shape:
                raise SystemExit(f"{case}: nnssl stored the shape {theirs.shape}, {name} {values.shape}.")
            largest[name] = max(largest[name], float(np.abs(values - theirs).max()))
    size = sum(getsize(peer.stored(case)) for case in cases) / 1e6
    return (
        f"nnssl: largest difference of values from nnU-Net {largest['nnU-Net']:.1e}, from ours {largest['ours']:.1e}; "
        f"MB stored, without segmentations: {size:.1f}; with {', '.join(f'{k} {v}' for k, v in peer.libraries.items())}"
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
    parser.add_argument("--profile", action="store_true", help="also say where the time goes (not for nnssl)")
    parser.add_argument("--nnssl", metavar="PYTHON", help="also measure nnssl: the interpreter of its environment")
    args = parser.parse_args()
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    cases, dataset_json = find_cases(args.data, args.limit)
    if args.nnssl and any(len(files["images"]) > 1 for files in cases.values()):
        parser.error("--nnssl: these images have several channels. nnssl reads one; leave --nnssl away.")
    plans = plans_for(dataset_json, args.spacing, args.patch, args.storage)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        runs = pipelines(plans, dataset_json, folder)
        timed: dict[str, Callable[..., float]] = {name: partial(cpu_seconds, run) for name, run in runs.items()}
        peer = stack.enter_context(Peer(args.nnssl, folder, args.spacing)) if args.nnssl else None
        if peer is not None:
            timed["nnssl"] = peer.run
        totals: dict[str, list[float]] = {name: [] for name in timed}
        for repeat in range(args.repeats + 1):
            seconds = dict.fromkeys(timed, 0.0)
            for case, files in cases.items():
                clear(folder, case)
                for name in timed if repeat % 2 else reversed(list(timed)):
                    seconds[name] += timed[name](case, files)
            if repeat:  # the first round reads the files into the system's cache and builds the matrices
                for name, total in seconds.items():
                    totals[name].append(total)
        medians = {name: statistics.median(values) for name, values in totals.items()}
        for name, values in totals.items():
            spread = f"{len(cases) / max(values):.2f} to {len(cases) / min(values):.2f}"
            print(
                f"{name}: {len(cases) / medians[name]:.2f} volumes per CPU second ({spread} in {args.repeats} repeats)"
            )
        ratios = [f"{medians[name] / medians['ours']:.1f} times as fast as {name}" for name in timed if name != "ours"]
        print(f"ours is {' and '.join(ratios)} on {len(cases)} images")
        print(compare(folder, list(cases)))
        if peer is not None:
            print(compare_nnssl(folder, list(cases), peer))
        if args.profile:
            for name, run in runs.items():
                print(f"seconds per image, {name}: {where_time_goes(run, cases, folder)}")


if __name__ == "__main__":
    main()
