"""Rotation, scaling and mirroring on a GPU: the same as in a reading process, without a wait, and how long it takes.

    python benchmarks/gpu/augmentation.py                          # on a machine with a GPU, less than 30 s
    python benchmarks/gpu/augmentation.py -device cpu --edge 32    # dry run

1. Batches of boxes with and without masks, single and half precision, 2D, 3D and in plane, are finished on the device and
   compared with what a reading process makes of them. On a GPU torch raises an error if the host waits.
2. Batches that reading processes send to the device, in one piece and in parts, are finished behind other work, while the next
   ones are copied, and compared with those of a run on the CPU.
3. Milliseconds per batch as MAE has them: copying the boxes, finishing them on the device, and the host's share of that.

Exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.planners.preprocessing.storage import save_case
from nnunet_ssl.trainers.data import batches
from nnunet_ssl.trainers.data.augmentation import Augmentation
from nnunet_ssl.trainers.data.corpus import Corpus, CorpusDataset
from nnunet_ssl.trainers.data.finishing import Box, finish_box
from nnunet_ssl.trainers.data.packing import Packed, Packer, unpack
from nnunet_ssl.trainers.data.patch_sampler import PatchSampler
from nnunet_ssl.trainers.data.patches import PatchDataset
from nnunet_ssl.views.spec import Views

THIRTY = (-np.pi / 6, np.pi / 6)
CLOSE = 2e-3  # white noise of deviation 1, whose neighbours differ by several; places are known to 1e-5 voxels
MASKS = 1e-4  # share of voxels whose label may differ: those that are half excluded, but for rounding


def augmentation(size: tuple[int, ...], p: float, in_plane: bool = False) -> Augmentation:
    """nnU-Net's decisions for regions of `size`."""
    largest = tuple(n if in_plane and a == 0 else round(1.6 * n) for a, n in enumerate(size))
    axes = tuple(range(len(size)))
    return Augmentation(size, p, THIRTY, in_plane=in_plane, largest=largest, mirror_axes=axes)


def draw(decide: Augmentation, number: int, dtype: torch.dtype, masks: bool, channels: int = 1) -> list[Box]:
    """Boxes of noise; every second one with a mask, if any."""
    boxes = []
    for row in range(number):
        affine = decide.draw()
        image = torch.randn(channels, *decide.read_size(affine)).to(dtype)
        mask = image[:1] > 0.5 if masks and row % 2 else None
        boxes.append(Box(image, mask, affine, decide.draw_mirrored()))
    return boxes


def packed(boxes: list[Box], device: torch.device) -> Packed:
    """The boxes on the device."""
    part = Packer()([{"boxes": boxes, "key": ""}])["packed"]
    return (part.pin_memory() if device.type == "cuda" else part).to(device)


@contextmanager
def nothing_waits(device: torch.device) -> Iterator[None]:
    """An error where the host waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """Largest difference of voxels, and share of labels that differ."""
    image = (found["image"].cpu() - expected["image"]).abs().max().item()
    return image, (found["excluded"].cpu() != expected["excluded"]).float().mean().item()


def same_values(device: torch.device, edge: int) -> bool:
    """Part 1."""
    geometries = {
        "volumes": ((edge,) * 3, False),
        "boxes": ((edge // 2, edge, 3 * edge // 4), False),
        "in plane": ((8, edge, edge), True),
        "slices": ((2 * edge, edge), False),
    }
    good = True
    for name, (size, in_plane) in geometries.items():
        for dtype in (torch.float32, torch.float16):
            np.random.seed(0)
            torch.manual_seed(0)
            boxes = draw(augmentation(size, 0.5, in_plane), 12, dtype, masks=True, channels=2)
            rows = [finish_box(b, size, by_products=True) for b in boxes]
            expected = {
                "image": torch.stack([image.float() for image, _ in rows]),
                "excluded": torch.stack([torch.zeros(1, *size, dtype=torch.bool) if m is None else m for _, m in rows]),
            }
            on_device = {"packed": [packed(boxes, device)]}
            unpack(on_device, Views(size, size))  # the first call may load code, and wait for it
            with nothing_waits(device):
                found = unpack(on_device, Views(size, size))
            image, masks = compare(found, expected)
            good &= image < CLOSE and masks < MASKS
            print(json.dumps({"same values": name, "dtype": str(dtype), "image": image, "masks": masks}), flush=True)
    return good


def same_batches(device: torch.device, edge: int, workers: int) -> bool:
    """Part 2."""
    size, good = (edge,) * 3, True
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3):
            image = np.random.default_rng(number).normal(size=(1, *(edge + 16,) * 3)).astype(np.float32)
            labels = np.zeros(image.shape, np.int16)
            labels[:, :edge, :edge, :edge] = 2 * (number == 0)
            dtype = np.dtype("float16" if number == 1 else "float32")
            save_case(image, labels, {}, str(Path(folder) / f"case_{number}"), size, dtype)
        dataset = CorpusDataset("Dataset001_A", folder, anonymised_label=2)
        corpus = Corpus([dataset], Corpus.all_identifiers([dataset]))
        settings = {"seed": 0, "stream": 0, "separate_channels": True}

        def load(target: torch.device, later: bool) -> Iterator[dict]:
            data = PatchDataset(
                corpus, Views(size, size), augmentation(size, 0.2), PatchSampler(corpus), finish_later=later, **settings
            )  # type: ignore[arg-type]  # fmt: skip
            positions = batches.Positions(range(16), 8, 8, 0, repeat=False)
            return batches.load_batches(data, positions, workers, target)  # type: ignore[return-value]

        expected = list(load(torch.device("cpu"), False))
        for part_bytes in (1 << 40, 3 * 5 * round(1.6 * edge) ** 3):
            batches.CHUNK_BYTES = part_bytes
            busy, rows = torch.randn(2 * (4096 if device.type == "cuda" else 64,), device=device), []
            for batch in load(device, True):
                for _ in range(10):  # some 20 ms of work, during which the next batch is copied
                    busy = (busy @ busy).clamp_(-1, 1)
                rows.append(unpack(batch, Views(size, size)))
                del batch
            found = [compare(a, b) for a, b in zip(rows, expected, strict=True)]
            image, masks = (max(column) for column in zip(*found, strict=True))
            good &= image < CLOSE and masks < MASKS
            print(json.dumps({"same batches": len(rows), "part bytes": part_bytes, "image": image, "masks": masks}))
    return good


def measured(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Milliseconds until the device has done some work, and those of the host alone."""
    wait = torch.get_device_module(device).synchronize
    wait()
    start = time.perf_counter()
    work()
    host = time.perf_counter() - start
    wait()
    return 1e3 * (time.perf_counter() - start), 1e3 * host


def speed(device: torch.device, edge: int, number: int) -> None:
    """Part 3."""
    size = (edge,) * 3
    for dtype in (torch.float32, torch.float16):
        np.random.seed(0)
        torch.manual_seed(0)
        rows = []
        for _ in range(8):
            boxes = draw(augmentation(size, 0.2), number, dtype, masks=False)
            part = Packer()([{"boxes": boxes, "key": ""}])["packed"]
            part = part.pin_memory() if device.type == "cuda" else part
            copied = [measured(lambda part=part: part.to(device), device)[0] for _ in range(3)][-1]
            on_device = {"packed": [part.to(device)]}
            timed = [measured(lambda b=on_device: unpack(b, Views(size, size)), device) for _ in range(4)][-1]
            turned = sum(place.affine is not None for place in part.entries)
            rows.append((turned, part.memory.nbytes / 1e6, copied, *timed))
        names = ("turned", "MB", "copy ms", "finish ms", "host ms")
        row = dict(zip(names, (statistics.mean(column) for column in zip(*rows, strict=True)), strict=True))
        print(json.dumps({"batch": number, "edge": edge, "dtype": str(dtype), **row}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--edge", type=int, default=160, help="voxels per axis of the batches that are timed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.device == "cuda":
        print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}))
    small = min(args.edge, 64)
    good = same_values(device, small) & same_batches(device, small, args.workers)
    speed(device, args.edge, args.batch)
    if not good:
        raise SystemExit("The device gives other values than the reading processes.")


if __name__ == "__main__":
    main()
