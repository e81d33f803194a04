"""The demo's page: every number and sentence comes from the files the commands left behind."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.demo.data import FILE_ENDING, LABELLED, SCANS, UNLABELLED
from nnunet_ssl.demo.job import RAW, TRAINERS, Scale, prediction_folder, run_folder
from nnunet_ssl.demo.scores import BOTH, STRUCTURES, Scores, read_scores
from nnunet_ssl.demo.steps import LOGS, Step, clock
from nnunet_ssl.report.comparison.paired import compare_structures, verdict
from nnunet_ssl.report.geometry import Geometry
from nnunet_ssl.report.orientation import codes_of
from nnunet_ssl.report.overlays import draw_overlay
from nnunet_ssl.report.page import Page
from nnunet_ssl.report.progress import draw_comparison

REPORT = "report.html"
PICTURES = "pictures"
MAX_VALIDATION = 2
LEARNED = 0.1  # mean Dice below which no comparison makes sense
PACKAGES = ("nnunet_ssl", "nnunetv2", "torch", "dynamic_network_architectures", "numpy")


def write_report(
    folder: Path,
    scale: Scale,
    seed: int,
    device: str,
    steps: Sequence[Step],
    variables: Mapping[str, str],
    seconds: Mapping[str, float],
    total_seconds: float,
) -> Path:
    """Write report.html into the demo's folder and return its path; `seconds`: of every step by name."""
    (folder / PICTURES).mkdir(exist_ok=True)
    cases, scores = read_scores(folder)
    rows = compare_structures(scores)
    page = Page(
        "Self-supervised pre-training with nnU-Net: the demo",
        f"A network learns from {scale.unlabelled} volumes without labels, then from {scale.labelled} labelled ones, "
        f"and is compared with the same network trained on the {scale.labelled} labelled ones alone.",
    )
    page.key_message(f"Both structures together: {verdict(rows[-1])}")
    if max(rows[-1]["scratch_mean"], rows[-1]["finetuned_mean"]) < LEARNED:
        page.key_message(
            f"Neither network has learned the task: both have a mean Dice below {LEARNED}. So little training compares "
            "nothing; it only shows that every step works."
        )
    page.paragraph(
        "One training run of each kind, made-up images, a tiny network and minutes instead of days: the numbers show "
        "that the commands work together, not what pre-training is worth on real data. The interval is about the test "
        "cases; how much another run with other random numbers would differ, it does not know."
    )
    _task(page, folder, scale)
    _commands(page, steps, variables, folder)
    _pretraining(page, folder, scale)
    _finetuning(page, folder)
    _segmentations(page, folder, cases, scores)
    _dice(page, rows, cases, scores)
    _circumstances(page, steps, seconds, total_seconds, seed, device)
    page.write(folder / REPORT)
    return folder / REPORT


def _task(page: Page, folder: Path, scale: Scale) -> None:
    page.heading("The task")
    page.paragraph(
        "Every volume shows a made-up organ with a dark, bent duct. A bright lobe sits at either end of the duct: the "
        "core at its thick end, the tail at its thin end. Lobes of the same brightness and size lie elsewhere and are "
        "background, so brightness alone does not solve the task: a network has to know the surroundings."
    )
    page.paragraph(
        f"{scale.unlabelled} volumes have no labels. They lie in the folder {SCANS} and are registered without copies: "
        f"the dataset.json of {UNLABELLED} points at them. {LABELLED} has {scale.labelled} labelled cases for training "
        f"and {scale.test} for testing that no training has seen."
    )
    first = folder / RAW / LABELLED
    picture = folder / PICTURES / "task.png"
    labels = _read(first / "labelsTr" / f"train_000{FILE_ENDING}")
    image = _read(first / "imagesTr" / f"train_000_0000{FILE_ENDING}")
    geometry = _geometry(first / "labelsTr" / f"train_000{FILE_ENDING}")
    draw_overlay(image, {"labels": labels}, picture, geometry=geometry, label_names=_label_names())
    page.figure(picture, "A labelled training case, cut through its labels along each axis: the image, and its labels.")


def _commands(page: Page, steps: Sequence[Step], variables: Mapping[str, str], folder: Path) -> None:
    page.heading("What was done")
    page.paragraph("These commands, in this order. Each ran in a process of its own; its log lies in the folder logs.")
    lines = [
        f"export {variable}={shlex.quote(value)}"
        for variable, value in variables.items()
        if variable.startswith("nnUNet")
    ]
    lines.append(f"cd {shlex.quote(str(folder))}")
    for step in steps:
        lines += ["", f"# {step.title}", *(f"# {line}" if step.edit else line for line in step.lines)]
    page.commands(lines)


def _pretraining(page: Page, folder: Path, scale: Scale) -> None:
    run = folder / run_folder(UNLABELLED, "SSLMAETrainer")
    page.heading("Pre-training without labels")
    page.paragraph(
        "Masked autoencoding: most of a patch is hidden, and the network paints it from the rest. The loss is the mean "
        "squared error on hidden voxels, of images with mean 0 and variance 1, so 1 is what always painting the mean "
        f"would cost. {scale.pretraining_epochs} epochs of {scale.pretraining_iterations} iterations."
    )
    if (run / "progress.png").is_file():
        page.figure(run / "progress.png", "Pre-training: loss, terms, learning rate and time per epoch.")
    previews = sorted((run / "previews").glob("*.png"))
    validation = sorted((run / "validation").glob("*.png"))
    captions = {file: f"During pre-training, {file.stem.replace('_', ' ')}" for file in (*previews[:1], *previews[-1:])}
    captions |= {
        file: f"After pre-training, validation case {file.stem.split('__')[-1]}" for file in validation[:MAX_VALIDATION]
    }
    for file, caption in captions.items():
        page.figure(
            file,
            f"{caption}: the middle of the patch along each axis. Hidden voxels are violet. Only they count in the "
            "loss; what the network paints over visible ones means nothing.",
        )


def _finetuning(page: Page, folder: Path) -> None:
    runs = {run: folder / run_folder(LABELLED, trainer) for run, trainer in TRAINERS.items()}
    page.heading("Training on the labelled cases")
    page.paragraph(
        "Twice the same network, data, schedule, learning rate and seed; one starts from random weights, the other "
        "from the pre-trained encoder."
    )
    report = runs["fine-tuned"] / "pretrained_weights.json"
    if report.is_file():
        transfer = json.loads(report.read_text(encoding="utf-8"))
        columns = ("loaded", "adapted", "fresh", "left_out")
        rows = [
            [name, *(f"{count[column]:,}" for column in columns)]
            for name, count in transfer["groups"].items()
            if any(count[column] for column in columns)
        ]
        header = ["parameters", *(column.replace("_", " ") for column in columns)]
        page.table(header, rows, "What became of the pre-trained weights. Fresh: random at the start of fine-tuning.")
    picture = folder / PICTURES / "training.png"
    logs = {run: read_checkpoint(place / "checkpoint_final.pth")["logging"] for run, place in runs.items()}
    draw_comparison(logs, picture, {"train_losses": "training loss", "mean_fg_dice": "pseudo Dice"})
    page.figure(
        picture,
        "Both trainings. The pseudo Dice is nnU-Net's quick estimate on random patches, here of the training cases.",
    )


def _segmentations(page: Page, folder: Path, cases: Sequence[str], scores: Scores) -> None:
    page.heading("Segmentations of test cases")
    page.paragraph("The cases with the lowest, the middle and the highest fine-tuned Dice: none is hand-picked.")
    finetuned = scores[BOTH][1]
    ranked = sorted(range(len(cases)), key=lambda index: finetuned[index])
    for index in dict.fromkeys((ranked[0], ranked[len(ranked) // 2], ranked[-1])):
        case = cases[index]
        maps = {"ground truth": _read(folder / RAW / LABELLED / "labelsTs" / f"{case}{FILE_ENDING}")}
        maps |= {run: _read(folder / prediction_folder(run) / f"{case}{FILE_ENDING}") for run in TRAINERS}
        picture = folder / PICTURES / f"{case}.png"
        file = folder / RAW / LABELLED / "imagesTs" / f"{case}_0000{FILE_ENDING}"
        draw_overlay(_read(file), maps, picture, case, _geometry(file), _label_names())
        dice = ", ".join(f"{run} {values[index]:.3f}" for run, values in zip(TRAINERS, scores[BOTH], strict=True))
        page.figure(picture, f"{case}. Mean Dice of both structures: {dice}.")


def _dice(
    page: Page,
    rows: Sequence[Mapping[str, Any]],
    cases: Sequence[str],
    scores: Scores,
) -> None:
    page.heading("Dice on the test cases")
    page.table(
        ["structure", *TRAINERS, "difference", "95 % interval", "better", "cases"],
        [
            [
                row["structure"],
                f"{row['scratch_mean']:.3f} ± {row['scratch_std']:.3f}",
                f"{row['finetuned_mean']:.3f} ± {row['finetuned_std']:.3f}",
                f"{row['difference']:+.3f}",
                f"{row['difference_low']:+.3f} to {row['difference_high']:+.3f}",
                f"{row['better']} of {row['n']}",
                row["n"],
            ]
            for row in rows
        ],
        "Mean ± standard deviation over cases, paired difference (fine-tuned minus from scratch) with its t-interval, "
        "and in how many cases fine-tuned has the higher Dice.",
    )
    for row in rows:
        page.paragraph(f"{row['structure'].capitalize()}: {verdict(row)}")
    page.table(
        ["case", *(f"{name}, {run}" for name in scores for run in TRAINERS)],
        [
            [case, *(f"{values[index]:.3f}" for pair in scores.values() for values in pair)]
            for index, case in enumerate(cases)
        ],
        "Dice of every test case, computed by nnUNetv2_evaluate_folder.",
    )


def _circumstances(
    page: Page, steps: Sequence[Step], seconds: Mapping[str, float], total_seconds: float, seed: int, device: str
) -> None:
    page.heading("Time and versions")
    rows = [
        [step.title, clock(seconds[step.name]), f"{LOGS}/{number:02d}_{step.name}.log"]
        for number, step in enumerate(steps, start=1)
    ]
    page.table(["step", "time [min:s]", "log"], [*rows, ["everything", clock(total_seconds), ""]])
    versions: list[list[object]] = [[name, metadata.version(name)] for name in PACKAGES]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, trained on {device}"
    facts: list[list[object]] = [["Python", platform.python_version()], *versions, ["machine", machine], ["seed", seed]]
    page.table(["what", "which"], facts)


def _read(file: Path) -> Any:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _geometry(file: Path) -> Geometry:
    image = sitk.ReadImage(str(file))
    codes = codes_of({"sitk_stuff": {"direction": image.GetDirection()}}, (0, 1, 2))
    return Geometry(codes, tuple(image.GetSpacing()[::-1]))


def _label_names() -> dict[int, str]:
    return {label: name for name, label in STRUCTURES.items()}
