"""A corpus of 120,000 images: time and peak memory of everything from the import to the first training batch.

Each step in a process of its own, started and imported anew; both count.

    python benchmarks/corpus_scale.py --images 120000 --headers 12000 --folder /tmp/scale

The images are hard links to a few files for the import without headers (a directory entry each), and, with --headers N,
N tiny NIfTI files of their own for the import that reads headers. The preprocessed cases are hard links to those of one image.
Steps: plan (with a made-up fingerprint), prepare (what nnUNetv2_pretrain does when everything is there), split, and start:
from a fresh process to the first batch of a training with filter and sampling weights, one reading process beside it. Its peak
is that of the largest of the two processes. Nothing outside --folder is written.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

STEPS = ("import", "again", "headers", "table", "filter", "weights", "split", "plan", "links", "prepare", "start")
MAX_LINKS = 30_000  # to one file; ext4 allows 65,000
FILTER = 'modality in ("T1w", "T2w") and iqs <= 2.5 and age >= 30'
DATASET, PLANS, SHAPE = "Dataset745_Scale", "nnUNetSSLResEncTinyPlans", (40, 40, 40)
MODALITIES = ("T1w", "T2w", "FLAIR", "DWI", "SWI")


def make(folder: Path, images: int, headers: int) -> None:
    """Write the stand-ins and the CSV files."""
    import nibabel
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(exist_ok=True)
    one = folder / "one.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((16, 16, 16), np.int16), np.eye(4)), one)
    content = one.read_bytes()
    for name, count, real in (("images", images, False), ("headers", headers, True)):
        if (folder / f"{name}.csv").exists():
            continue
        original = one
        lines = ["path,subject,session,modality,dataset,iqs,age,manufacturer"]
        for number in range(count):
            path = folder / name / f"{number // 1000:03d}" / f"image_{number:06d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if real or number % MAX_LINKS == 0:
                path.write_bytes(content)
                original = path
            elif not path.exists():
                os.link(original, path)
            subject, dataset = number // 3, number % 800
            modality, quality = MODALITIES[number % 5], 1 + number % 40 / 10
            lines.append(
                f"{path},sub-{subject:05d},ses-{number % 3},{modality},ds{dataset:06d},{quality},{20 + number % 60},GE"
            )
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def make_preprocessed(folder: Path) -> None:
    """Link the files of one preprocessed case under the names of all cases of the table."""
    import json

    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from nnunet_ssl.corpus.images import list_images, read_dataset_json
    from nnunet_ssl.corpus.table import read_table
    from nnunet_ssl.files.atomic import write_json
    from nnunet_ssl.planners.preprocessing.normalization import add_modalities
    from nnunet_ssl.planners.sharing.changes import compare
    from nnunet_ssl.planners.sharing.finished import SETTINGS, STATE, SUFFIXES, relevant_settings
    from nnunet_ssl.planners.sharing.made_from import write_origins

    base = folder / "nnUNet_preprocessed" / DATASET
    plans = json.loads((base / f"{PLANS}.json").read_text())
    target = base / plans["configurations"]["3d_fullres"]["data_identifier"]
    target.mkdir(parents=True, exist_ok=True)
    cases = read_table(str(folder / "nnUNet_raw" / DATASET), ["case"])["case"].tolist()
    for number, case in enumerate(cases):
        if number % MAX_LINKS == 0:
            first = target / case
            if not Path(f"{first}.pkl").exists():
                image = np.random.default_rng(number).normal(size=(1, *SHAPE)).astype(np.float32)
                properties = {"spacing": [1, 1, 1], "class_locations": {}}
                parts = (image.shape, image.shape)
                nnUNetDatasetBlosc2.save_case(image, np.zeros_like(image, np.int16), properties, str(first), *parts)
        for suffix in SUFFIXES:
            if not Path(f"{target / case}{suffix}").exists():
                os.link(f"{first}{suffix}", f"{target / case}{suffix}")
    # What preprocessing would have noted.
    raw, state = str(folder / "nnUNet_raw" / DATASET), target / STATE
    dataset_json = read_dataset_json(raw)
    images = list_images(raw, dataset_json)
    add_modalities(images, raw)
    state.mkdir(exist_ok=True)
    settings = relevant_settings(plans, plans["configurations"]["3d_fullres"], dataset_json)
    write_json(settings, state / SETTINGS)
    write_origins(str(state), compare(str(target), images).origins)


def write_fingerprint(folder: Path) -> None:
    """What the fingerprint of all images would be if they were alike."""
    from nnunet_ssl.corpus.table import read_table
    from nnunet_ssl.files.atomic import write_json

    base = folder / "nnUNet_preprocessed" / DATASET
    base.mkdir(parents=True, exist_ok=True)
    number = len(read_table(str(folder / "nnUNet_raw" / DATASET), ["case"]))
    statistics = {
        "mean": 0.5,
        "median": 0.5,
        "std": 0.5,
        "min": 0,
        "max": 1,
        "percentile_99_5": 1,
        "percentile_00_5": 0,
    }
    write_json(
        {
            "spacings": [[1.0] * 3] * number,
            "shapes_after_crop": [list(SHAPE)] * number,
            "foreground_intensity_properties_per_channel": {"0": statistics},
            "median_relative_size_after_cropping": 1.0,
        },
        str(base / "dataset_fingerprint.json"),
    )


def start(folder: Path) -> str:
    """From nothing to the first batch of the training."""
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112  nnU-Net reads this name
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json

    from nnunet_ssl.trainers.pretraining import SSLMAETrainer

    base = folder / "nnUNet_preprocessed" / DATASET
    plans = {**load_json(str(base / f"{PLANS}.json")), "continue_training": False}
    plans["configurations"]["3d_fullres"]["ssl"] |= {"filter": FILTER, "sampling": "subjects", "batch_size": 2}
    trainer = SSLMAETrainer(plans, "3d_fullres", "all", load_json(str(base / "dataset.json")), torch.device("cpu"))  # type: ignore[arg-type]
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    trainer.on_train_epoch_start()
    trainer.train_step(batch)
    trainer.dataloader_train = trainer.dataloader_val = None
    return f"first batch {list(batch['image'].shape)}"


def step(name: str, folder: Path) -> str:
    """Do one step in this process and say what came out."""
    if name == "start":
        return start(folder)
    if name == "links":
        make_preprocessed(folder)
        return "stand-ins for preprocessed images"
    if name == "plan":
        from nnunet_ssl.planners.ssl_planner import SSLPlannerResEncTiny

        write_fingerprint(folder)
        SSLPlannerResEncTiny(DATASET, plans_name=PLANS).plan_experiment()
        return "plans"
    if name == "prepare":
        from nnunet_ssl.planners.prepare import prepare_corpus

        prepare_corpus([DATASET], plans_name=PLANS, num_processes=1)
        return "nothing left to do"
    from nnunet_ssl.cli.import_corpus import main
    from nnunet_ssl.corpus.filters import select
    from nnunet_ssl.corpus.sampling import sampling_weights
    from nnunet_ssl.corpus.subjects import split_by_subject, subjects_of
    from nnunet_ssl.corpus.table import read_table

    raw = folder / "nnUNet_raw" / DATASET
    if name in ("import", "again"):
        new = [] if raw.exists() else ["-n", "Scale"]
        main(["-i", str(folder / "images.csv"), "-d", "745", *new, "--no-headers"])
        return f"{(raw / 'dataset.json').stat().st_size / 1e6:.1f} MB dataset.json"
    if name == "headers":
        main(["-i", str(folder / "headers.csv"), "-d", "746", "-n", "Headers"])
        return "headers read"
    if name == "split":
        cases = read_table(str(raw), ["case"])["case"].tolist()
        training, validation = split_by_subject(cases, subjects_of(str(raw), cases))
        return f"{len(training)} / {len(validation)} images"
    table = read_table(str(raw))
    if name == "filter":
        return f"{len(select(table, FILTER))} images"
    if name == "weights":
        return f"sum {sampling_weights(table, 'subjects').sum():.6f}"
    return f"{len(table)} rows"


def main() -> None:
    """Run every step in a fresh process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--headers", type=int, default=12_000, help="images whose headers are read")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(args.folder / name)
    if args.step:
        result = step(args.step, args.folder)
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(w).ru_maxrss for w in who) / 1e6  # kilobytes on Linux
        print(f"@@ {peak:.2f} | {result} |")
        return
    make(args.folder, args.images, args.headers)
    print(f"{args.images} images; headers of {args.headers}\n\n| step | s | peak GB | result |\n|---|---|---|---|")
    for name in STEPS:
        flags = ["--folder", str(args.folder), "--step", name]
        started = time.perf_counter()
        done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=False)
        found = [line[3:] for line in done.stdout.splitlines() if line.startswith("@@ ")]
        result = f"| {name} | {time.perf_counter() - started:.1f} | {found[0] if found else ''}"
        print(result if found else f"| {name} failed: {done.stderr[-2000:]}", flush=True)


if __name__ == "__main__":
    main()
