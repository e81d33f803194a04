r"""This framework against nnssl: training steps end to end, and the view pipelines alone, side by side in one run.

    python benchmarks/against_nnssl.py --nnssl NNSSL_PYTHON
    python benchmarks/against_nnssl.py --nnssl NNSSL_PYTHON --views --pairs all
    python benchmarks/against_nnssl.py --nnssl NNSSL_PYTHON --pairs voco/resenc_l simmim/primus_m --patch 64 --repeats 5

NNSSL_PYTHON is the interpreter of an environment of nnssl's own, with the same torch version as this one. nnssl 70448644
with dynamic-network-architectures 425000f of its authors' fork runs after these repairs, which change no algorithm:
  1. `override` imported from typing_extensions instead of typing (only below Python 3.12);
  2. AdaptationPlan(key_to_in_proj=...) renamed to keys_to_in_proj, in all trainers that pass it;
  3. get_network_by_name(encoder_only=True) reads key_to_encoder and keys_to_in_proj from the whole network, not from
     its encoder, which does not have them.
setuptools must be below 81 and timm at most 1.0.16; its src folder goes into a .pth file or an editable installation.

Twelve volumes are made up (always the same) and preprocessed by each framework's own commands from the same NIfTI files.
Per pair, one process of each framework builds its trainer with the same patch, batch, number of threads and of loader
workers. After a warm-up they take turns, block by block; the one whose turn it is not is stopped with all its workers,
so that it neither disturbs nor fills its queue. A block is `--iterations` iterations of the trainer's own step on
batches from its own loader, with its own augmentation: nothing is left out but validation and checkpoints. Ratios are
computed block by block; the table shows their median and range. This framework runs as its users run it, in bfloat16
where the CPU has it (--float32: without). Threads wait passively on both sides, which is our command's default only.

--views measures CPU seconds per batch of the work before the network instead, in one thread without worker processes:
reading, augmentation, corruption, crops. Masks of mae, spark3d and simmim count on our side only: nnssl makes them
within its training step. CPU seconds hardly depend on what else the machine does; seconds do, so let it be idle.

nnssl measures VoCo on a region of 2 x 2 x 1 patches and SimCLR on one of 1.5 x 1.5 x 1; both sides do so here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from against_nnssl_sides import COUNTERPARTS, DATASET, Worker

SIDES = ("ours", "nnssl")


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnssl", required=True, metavar="PYTHON", help="interpreter of nnssl's environment")
    parser.add_argument(
        "--pairs", nargs="+", default=["mae/resenc_l", "mae/primus_m"], metavar="METHOD/BACKBONE",
        help=f"or all: {', '.join(map('/'.join, COUNTERPARTS))} (default: mae on both; all with --views: one per method)",
    )  # fmt: skip
    parser.add_argument("--views", action="store_true", help="CPU seconds of what comes before the network instead")
    parser.add_argument("--patch", type=int, default=64, help="voxels per axis that the network sees (default: 64)")
    parser.add_argument("--batch", type=int, default=2, help="images per iteration (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="blocks per side (default: 5)")
    parser.add_argument("--iterations", type=int, help="per block (default: 3; with --views: 20)")
    parser.add_argument("--warmup", type=int, default=2, help="iterations before the first block (default: 2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all cores; --views: 1)")
    parser.add_argument("--workers", type=int, default=1, help="processes that load data (default: 1; --views: none)")
    parser.add_argument("--float32", action="store_true", help="without autocast on our side")
    parser.add_argument("--volumes", type=int, default=12, help="made-up images, at least 6 (default: 12)")
    parser.add_argument("--edge", type=int, default=128, help="their size in voxels per axis (default: 128)")
    parser.add_argument("--output", type=Path, default=Path("against_nnssl"), help="folder of data, logs and results")
    return parser


def chosen_pairs(names: list[str], views: bool) -> list[tuple[str, str]]:
    """(method, backbone) of the flags; raises ValueError for one without a counterpart."""
    if names == ["all"]:
        first: dict[str, str] = {}
        for method, backbone in COUNTERPARTS:
            first.setdefault(method, backbone)
        return list(first.items()) if views else list(COUNTERPARTS)
    pairs = []
    for name in names:
        method, _, backbone = name.partition("/")
        if (method, backbone) not in COUNTERPARTS:
            raise ValueError(f"nnssl has no {name}. Choose from {', '.join(map('/'.join, COUNTERPARTS))}, or all.")
        pairs.append((method, backbone))
    return pairs


def write_images(folder: Path, volumes: int, edge: int) -> None:
    """The same made-up heads for both: float32, 1 mm, smooth texture with noise, nothing around; descriptions of both."""
    import SimpleITK as sitk
    from scipy import ndimage

    raw = folder / "raw" / DATASET
    if (raw / "pretrain_data.json").is_file():
        return
    raw.mkdir(parents=True, exist_ok=True)
    axis = np.linspace(-1, 1, edge, dtype=np.float32)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    cases, subjects = {}, {}
    for number in range(volumes):
        draw = np.random.default_rng(number)
        texture = ndimage.gaussian_filter(draw.standard_normal((edge,) * 3, dtype=np.float32), 3)
        image = 100 + 30 * texture / texture.std() + 5 * draw.standard_normal((edge,) * 3, dtype=np.float32)
        case, file = f"sub-{number:02d}", raw / f"sub-{number:02d}.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(np.where(radius < 1.1, image.clip(1), 0).astype(np.float32)), str(file))
        cases[case] = {"images": [str(file)]}
        entry = {"name": file.name, "modality": "MRI", "image_info": {}, "image_path": str(file)}
        session = {"session_id": "1", "session_info": {}, "images": [{**entry, "associated_masks": None}]}
        subjects[case] = {"subject_id": case, "subject_info": {}, "sessions": {"1": session}}
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": volumes, "dataset": cases}))
    # As nnssl's documentation/dataset_format.md describes it; nnssl names the folders of its results after the collection.
    datasets = {"1": {"dataset_index": "1", "name": DATASET, "dataset_info": {}, "subjects": subjects}}
    corpus = {"collection_index": 1, "collection_name": DATASET, "datasets": datasets}
    (raw / "pretrain_data.json").write_text(json.dumps(corpus))


def open_sides(args: argparse.Namespace, folder: Path) -> dict[str, Worker]:
    """A fresh process of each framework."""
    data = folder / "data"
    environment = {
        "nnUNet_raw": str(data / "raw"), "nnUNet_preprocessed": str(data / "ours"), "nnUNet_results": str(folder / "runs"),
        "nnssl_raw": str(data / "raw"), "nnssl_preprocessed": str(data / "nnssl"), "nnssl_results": str(folder / "runs"),
        "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE", "nnUNet_n_proc_DA": str(args.workers),
        "FLOAT32": str(int(args.float32)), "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    for path in (data / "ours", data / "nnssl", folder / "runs"):
        path.mkdir(parents=True, exist_ok=True)
    return {
        name: Worker(name, {"ours": sys.executable, "nnssl": args.nnssl}[name], folder, environment) for name in SIDES
    }


def measure(args: argparse.Namespace, sides: dict[str, Worker], method: str, backbone: str) -> dict[str, Any]:
    """All blocks of a pair: seconds and CPU seconds per iteration of each, and what is told about them."""
    work, row = "views" if args.views else "steps", {"method": method, "backbone": backbone}
    setting = {"method": method, "backbone": backbone, "patch": args.patch, "batch": args.batch}
    for name, side in sides.items():
        row[name] = {**side.call("start", **setting, views_only=args.views)["result"], "seconds": [], "cpu": []}
        side.forget_peak()
        side.call(work, times=args.warmup)
    for _ in range(args.repeats):
        for name, side in sides.items():
            answer = side.call(work, times=args.iterations)
            row[name]["loss"] = answer["result"]
            for clock in ("seconds", "cpu"):
                row[name][clock].append(answer[clock] / args.iterations)
    for name, side in sides.items():
        row[name]["memory"] = side.memory()
    for clock in ("seconds", "cpu"):
        row[f"{clock}_ratios"] = [t / o for o, t in zip(row["ours"][clock], row["nnssl"][clock], strict=True)]
    return row


def markdown(args: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    """The table; failed pairs say why."""
    what = "CPU seconds per batch of the views" if args.views else "Training, end to end"
    head = (
        f"{what}: patch {args.patch}^3, batch {args.batch}, {args.threads} threads, {args.workers} workers; medians of "
    )
    columns = ["method", "backbone", "ours", "nnssl", "ratio (range)"]
    if not args.views:
        columns[2:] = [
            "samples/s",
            "nnssl",
            "ratio (range)",
            "CPU s/step",
            "nnssl",
            "ratio",
            "GiB + workers'",
            "nnssl",
            "precision",
        ]
    lines = [
        f"{head}{args.repeats} blocks of {args.iterations}.\n",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    median = statistics.median
    for row in rows:
        cells = [row["method"], row["backbone"]]
        if "error" in row:
            lines.append(f"| {' | '.join([*cells, 'failed: ' + row['error'].replace('|', '/')])} |")
            continue
        both, clock = [row[name] for name in SIDES], "cpu" if args.views else "seconds"
        ratios = row[f"{clock}_ratios"]
        cells += [f"{median(b[clock]) if args.views else args.batch / median(b[clock]):.3g}" for b in both]
        cells.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        if not args.views:
            cells += [f"{median(b['cpu']):.2f}" for b in both] + [f"{median(row['cpu_ratios']):.2f}"]
            cells += [f"{b['memory'][0]:.1f} + {b['memory'][1]:.1f}" for b in both] + [both[0]["precision"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure pair after pair; results.json and results.md are written after each."""
    parser = build_parser()
    args = parser.parse_args()
    try:
        pairs = chosen_pairs(args.pairs, args.views)
    except ValueError as error:
        parser.error(str(error))
    if args.views:
        args.threads, args.workers = 1, 0
    args.iterations = args.iterations or (20 if args.views else 3)
    folder = args.output.resolve()
    write_images(folder / "data", args.volumes, args.edge)
    name = "views" if args.views else "steps"
    rows: list[dict[str, Any]] = []
    setting = {k: v for k, v in vars(args).items() if k not in ("output", "nnssl")} | {"load": os.getloadavg()}
    sides = open_sides(args, folder)
    try:
        for side in sides.values():  # without images there is nothing to compare
            side.call("prepare", backbones=list(dict.fromkeys(backbone for _, backbone in pairs)))
        for number, (method, backbone) in enumerate(pairs):
            if number:  # memory of one pair must not count for the next
                sides = reopen(args, folder, sides)
            print(f"[{number + 1}/{len(pairs)}] {method}/{backbone}", file=sys.stderr, flush=True)
            try:
                rows.append(measure(args, sides, method, backbone))
            except RuntimeError as error:
                rows.append({"method": method, "backbone": backbone, "error": str(error)})
            (folder / f"{name}.json").write_text(json.dumps({"setting": setting, "rows": rows}, indent=2))
            (folder / f"{name}.md").write_text(markdown(args, rows) + "\n")
    except RuntimeError as error:
        sys.exit(f"The images could not be prepared: {error}")
    finally:
        for side in sides.values():
            side.end()
    print(markdown(args, rows))
    return 1 if any("error" in row for row in rows) else 0


def reopen(args: argparse.Namespace, folder: Path, sides: dict[str, Worker]) -> dict[str, Worker]:
    """Fresh processes in place of those."""
    for side in sides.values():
        side.end()
    return open_sides(args, folder)


if __name__ == "__main__":
    sys.exit(main())
