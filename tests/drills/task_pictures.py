"""Draw the preview of every task on images of your own, to look at: a few steps of a tiny network, in this process.

    python tests/drills/task_pictures.py OUT IMAGE [IMAGE ...] [--patch 48 56 40] [--steps 20] [--methods mae voco]

Every image is read as the corpus' reader does, brought to mean 0 and standard deviation 1, and cut to its middle, so that a patch
larger than the image shows what padding looks like; with two numbers, the middle slices are. Prints a line per
picture and a final count of pictures and of what went wrong; exits with 1 when anything did.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nnunet_ssl.corpus.reader import CorpusReader
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.report.geometry import Geometry
from nnunet_ssl.report.orientation import codes_of
from nnunet_ssl.report.pictures import draw_preview
from nnunet_ssl.report.planes import GreyScale
from nnunet_ssl.testing.tiny_step import prepare, tiny_method
from nnunet_ssl.trainers.data.corpus import beyond, image_extent, read_box

IMAGES = 2  # in a batch: the image, and the same mirrored


def batch_of(file: str, size: Sequence[int], regions: int) -> tuple[dict[str, Tensor], Geometry, GreyScale]:
    """The middle of an image [C, D, H, W] as a batch, with its geometry and grey values."""
    image, noted = CorpusReader().read_images([file])
    mean, deviation = float(image.mean()), max(float(image.std()), 1e-8)
    image = (image - mean) / deviation
    wanted = (1, *size) if len(size) == 2 else tuple(size)
    start = [(s - w) // 2 for s, w in zip(image.shape[1:], wanted, strict=True)]
    crop = read_box(image, start, wanted)[:1].float()
    excluded = beyond(image_extent(image.shape[1:], start, wanted), wanted)
    geometry = Geometry(codes_of(noted, (0, 1, 2)), tuple(float(s) for s in noted["spacing"]))
    if len(size) == 2:
        crop, excluded, geometry = crop[:, 0], excluded[:, 0], geometry.of_slice()
    batch = {"image": torch.stack([crop, crop.flip(-1)]), "excluded": torch.stack([excluded, excluded.flip(-1)])}
    if regions > 1:
        batch = {name: torch.stack([value] * regions, dim=1) for name, value in batch.items()}
        batch["image"][:, 1] = batch["image"][:, 1].flip(-2)
        batch["excluded"][:, 1] = batch["excluded"][:, 1].flip(-2)
    return batch, geometry, GreyScale("of the file", deviation, mean)


def draw(method: str, file: str, patch: tuple[int, ...], steps: int, path: Path) -> None:
    """Train a task for a few steps on an image, and draw it."""
    cls = get_method(method)
    task = tiny_method(cls, "unet", patch)
    views = cls.views(cls.Config(), patch)
    batch, geometry, scale = batch_of(file, views.region_size, views.regions)
    optimiser = torch.optim.AdamW(task.parameters(), 1e-3)
    for step in range(steps):
        optimiser.zero_grad()
        task(prepare(task, batch, step)).loss.backward()
        optimiser.step()
    task.eval()
    with torch.no_grad():
        preview = {name: value[0] for name, value in task(prepare(task, batch)).preview.items()}
    title = f"{method}, {Path(file).name.split('.')[0]}"
    draw_preview(preview, path, title, replace(geometry, turned=not cls.keeps_orientation), scale)


def main() -> int:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--patch", nargs="+", type=int, default=[48, 56, 40])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=method_names())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wrong = drawn = 0
    for file in args.images:
        for method in args.methods:
            path = args.out / f"{Path(file).name.split('.')[0]}_{len(args.patch)}d_{method}.png"
            try:
                draw(method, file, tuple(args.patch), args.steps, path)
            except Exception:
                wrong += 1
                print(f"{path.name}: {traceback.format_exc()}", flush=True)
            else:
                drawn += 1
                print(path, flush=True)
    print(f"{drawn} pictures, {wrong} failures")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
