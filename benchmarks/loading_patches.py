"""Patches per second of one reading process: nnU-Net's loader with its augmentation against this project's, in turns.

    python benchmarks/loading_patches.py --size 256 --patch 160 --cases 4 --patches 20
    python benchmarks/loading_patches.py --preprocessed nnUNet_preprocessed/Dataset004_Hippocampus/..._3d_fullres --patch 40 56 40
    python benchmarks/loading_patches.py --reading-process --storage float16 --patches 200

Without --preprocessed, volumes of smooth noise around a ball are written as nnU-Net's preprocessing would. Both sides draw
whole volumes, rotate and scale with the same probabilities and mirror; nnU-Net reads every patch enlarged and loads the labels
with it. Reading is done in this process, one thread. CPU seconds and bytes read are this process'; the file system's cache
is warm. The median over the repeats counts; the ratio is that of the medians.

With `--reading-process`, CPU seconds of a real reading process per MAE patch until it is sent: where it rotates, scales and
mirrors itself, as for a training on a CPU, and where a GPU does that. Medians per kind of patch; the mean counts each kind as
often as it comes. "received" is what the training process spends on copying a patch out of shared memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader, default_collate

from nnunet_ssl.planners.preprocessing.storage import STORAGE, save_case
from nnunet_ssl.trainers.data.augmentation import SCALING, AffineParams, Augmentation
from nnunet_ssl.trainers.data.corpus import Corpus, CorpusDataset, storage_and_cases
from nnunet_ssl.trainers.data.packing import Packer, tensors_of
from nnunet_ssl.trainers.data.patch_sampler import PatchSampler
from nnunet_ssl.trainers.data.patches import PatchDataset
from nnunet_ssl.views.spec import Views

ROTATION = (-np.pi / 6, np.pi / 6)
CPU = torch.device("cpu")
KINDS = ("as it is", "rotated", "scaled", "both")


def write_volumes(folder: Path, size: int, patch: tuple[int, ...], cases: int, storage: str = "nnunet") -> None:
    """Stand-ins for preprocessed images, stored by nnU-Net's own function with its own choice of blocks, or by ours."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 3, indexing="ij"))
    body = (grid**2).sum(axis=0) < 0.8
    for number in range(cases):
        noise = np.random.default_rng(number).normal(size=(size, size, size)).astype(np.float32)
        image = np.where(body, 8 * gaussian_filter(noise, 2) + 0.05 * noise, 0).astype(np.float32)[None]
        labels = np.where(body, 0, -1).astype(np.int16)[None]
        blocks, chunks = comp_blosc2_params(image.shape, patch, 4)
        blocks_seg, chunks_seg = comp_blosc2_params(labels.shape, patch, 2)
        properties = {"spacing": [1, 1, 1], "class_locations": {}}
        if storage != "nnunet":
            save_case(image, labels, properties, str(folder / f"case_{number:03d}"), patch, np.dtype(storage))
            continue
        nnUNetDatasetBlosc2.save_case(
            image, labels, properties, str(folder / f"case_{number:03d}"), chunks, blocks, chunks_seg, blocks_seg
        )


def nnunet_loader(folder: Path, patch: tuple[int, ...], p: float) -> Callable[[int], Any]:
    """nnU-Net's loader with the part of its augmentation that pre-training uses."""
    read_size = tuple(int(s) for s in get_patch_size(patch, ROTATION, ROTATION, ROTATION, (0.85, 1.25)))
    spatial = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=p,
        rotation=ROTATION,
        p_scaling=p,
        scaling=SCALING,
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )
    transforms = ComposeTransforms([spatial, MirrorTransform(allowed_axes=(0, 1, 2)), RemoveLabelTansform(-1, 0)])
    data = nnUNetDatasetBlosc2(str(folder))
    labels = LabelManager({"background": 0, "structure": 1}, None)
    loader = nnUNetDataLoader(data, 1, read_size, patch, labels, 0.0, transforms=transforms)

    def draw(number: int) -> Any:
        np.random.seed(number)
        torch.manual_seed(number)
        return loader.generate_train_batch()

    return draw


def own_loader(folder: Path, patch: tuple[int, ...], p: float) -> Callable[[int], Any]:
    """This project's."""
    return own_dataset(folder, patch, p).__getitem__


def own_dataset(folder: Path, patch: tuple[int, ...], p: float, finish_later: bool = False) -> PatchDataset:
    """Patches as they are read for MAE."""
    dataset = CorpusDataset("Dataset001_Bench", str(folder))
    corpus = Corpus([dataset], [f"{dataset.name}/{case}" for case in storage_and_cases(str(folder))[1]])
    read_size = tuple(int(s) for s in get_patch_size(patch, ROTATION, ROTATION, ROTATION, (0.85, 1.25)))
    augmentation = Remembering(patch, p=p, rotation=ROTATION, largest=read_size, mirror_axes=(0, 1, 2))
    return PatchDataset(
        corpus, Views(patch, patch), augmentation, PatchSampler(corpus, 0.1), seed=0, stream=0, separate_channels=True,
        finish_later=finish_later,
    )  # fmt: skip


class Remembering(Augmentation):
    """Knows what it decided last."""

    affine: AffineParams | None = None

    def draw(self) -> AffineParams | None:
        self.affine = super().draw()
        return self.affine

    def kind(self) -> str:
        """Of the last patch."""
        if self.affine is None:
            return KINDS[0]
        return KINDS[any(self.affine.angles) + 2 * (self.affine.scale != 1)]


class Timed:
    """Collates like a dataset's loader, and notes what the process used since the patch before."""

    def __init__(self, dataset: PatchDataset) -> None:
        self.augmentation, self.collate = dataset.augmentation, Packer(2) if dataset.finish_later else default_collate
        self.before = 0.0

    def __call__(self, samples: list[Any]) -> tuple[Any, str, float]:
        part, now = self.collate(samples), time.process_time()
        used, self.before = now - self.before, now
        return part, self.augmentation.kind(), used  # type: ignore[attr-defined]


def reading_process(folder: Path, patch: tuple[int, ...], p: float, patches: int) -> None:
    """Print what one reading process spends per patch of each kind, today's way and the GPU's."""
    shares = [(1 - p) ** 2, p * (1 - p), p * (1 - p), p * p]
    print(f"| finished | {' | '.join(KINDS)} | mean | MB sent | received |\n|---|{'---|' * (len(KINDS) + 3)}")
    for later in (False, True):
        dataset = own_dataset(folder, patch, p, later)
        loader = DataLoader(dataset, batch_size=1, sampler=range(patches), num_workers=1, collate_fn=Timed(dataset))
        used: dict[str, list[float]] = {kind: [] for kind in KINDS}
        sizes, received, before = [], [], time.process_time()
        for number, (part, kind, seconds) in enumerate(loader):
            # As into memory that a GPU copies from, which needs a GPU.
            copies = [part["packed"].to(CPU).memory] if later else [t.clone() for t in tensors_of(part)]
            sizes.append(sum(t.nbytes for t in copies) / 1e6)
            now = time.process_time()
            received.append(now - before)
            before = now
            if number > 2:
                used[kind].append(seconds)
        medians = [statistics.median(used[kind] or [float("nan")]) for kind in KINDS]
        mean = sum(m * share for m, share in zip(medians, shares, strict=True) if share)
        row = [
            *(f"{m:.4f}" for m in (*medians, mean)),
            f"{statistics.mean(sizes):.1f}",
            f"{statistics.median(received):.4f}",
        ]
        print(f"| {'on a GPU' if later else 'here'} | {' | '.join(row)} |", flush=True)


def measure(draw: Callable[[int], Any], numbers: range) -> tuple[float, float]:
    """Seconds of the clock and of the CPU per patch."""
    before, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    for number in numbers:
        draw(number)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return (time.perf_counter() - before) / len(numbers), cpu / len(numbers)


class Counted:
    """Counts the voxels that are decompressed, of images and labels, while it is in charge of blosc2's arrays."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> Counted:
        import blosc2

        self._original = blosc2.NDArray.__getitem__

        def counting(array: Any, key: Any) -> Any:
            found = self._original(array, key)
            self.bytes += found.nbytes
            return found

        blosc2.NDArray.__getitem__ = counting
        return self

    def __exit__(self, *_: object) -> None:
        import blosc2

        blosc2.NDArray.__getitem__ = self._original


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="voxels per axis of the volumes that are written")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--patch", type=int, nargs="+", default=[160], help="voxels per axis")
    parser.add_argument("--patches", type=int, default=10, help="per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--augmentation", type=float, default=0.2, help="probability of rotation and of scaling")
    parser.add_argument("--storage", default="nnunet", choices=("nnunet", *STORAGE), help="how volumes are written")
    parser.add_argument("--reading-process", action="store_true", help="CPU seconds per kind of patch, see above")
    parser.add_argument("--preprocessed", type=Path, help="folder with .b2nd files of a configuration")
    args = parser.parse_args()
    patch = tuple(args.patch * 3 if len(args.patch) == 1 else args.patch)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.preprocessed or Path(scratch)
        if args.preprocessed is None:
            write_volumes(folder, args.size, patch, args.cases, args.storage)
        if args.reading_process:
            reading_process(folder, patch, args.augmentation, args.patches)
            return
        sides = {make.__name__: make(folder, patch, args.augmentation) for make in (nnunet_loader, own_loader)}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for draw in sides.values():
            measure(draw, range(3))
        for repeat in range(args.repeats):
            for name, draw in sides.items():
                found[name].append(measure(draw, range(repeat * args.patches, (repeat + 1) * args.patches)))
        print("| loader | patches/s | CPU s/patch | MB read/patch |\n|---|---|---|---|")
        median: dict[str, tuple[float, float]] = {}
        for name, draw in sides.items():
            with Counted() as counted:
                measure(draw, range(args.repeats * args.patches))
            seconds, cpu = (statistics.median(column) for column in zip(*found[name], strict=True))
            median[name] = seconds, cpu
            size = counted.bytes / (args.repeats * args.patches) / 1e6
            print(f"| {name} | {1 / seconds:.2f} | {cpu:.3f} | {size:.1f} |", flush=True)
        clock, cpu = (a / b for a, b in zip(median["nnunet_loader"], median["own_loader"], strict=True))
        print(f"\nPatches per second x {clock:.2f}, CPU seconds per patch / {cpu:.2f}")


if __name__ == "__main__":
    main()
