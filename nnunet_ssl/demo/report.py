"""The demo's page: every number and sentence comes from the files the commands left behind."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunet_ssl.demo.data import FILE_ENDING, LABELLED, LABELS, SCANS, UNLABELLED
from nnunet_ssl.demo.job import COMPARISON, PRETRAINING, RAW, Scale
from nnunet_ssl.demo.steps import LOGS, Step, clock
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.report.geometry import Geometry
from nnunet_ssl.report.orientation import codes_of
from nnunet_ssl.report.overlays import draw_overlay
from nnunet_ssl.report.page import Page

REPORT = "report.html"
PICTURES = "pictures"
MAX_VALIDATION = 2
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
    summary = read_json(folder / COMPARISON / "summary.json")
    page = Page(
        "Self-supervised pre-training with nnU-Net: the demo",
        f"A network learns from {scale.unlabelled} volumes without labels, then from {scale.labelled} labelled ones, "
        f"and is compared with the same network trained on the {scale.labelled} labelled ones alone.",
    )
    for sentence in (*summary["answer"], *summary["cautions"]):
        page.key_message(sentence)
    page.paragraph(
        "Made-up images, a tiny network and minutes instead of days: the numbers show that the commands work together, not what "
        f"pre-training is worth on real data. Tables, curves and segmentations lie in {COMPARISON}/comparison.html."
    )
    _task(page, folder, scale)
    _commands(page, steps, variables, folder)
    _pretraining(page, folder, scale)
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
        lines += ["", f"# {step.title}", step.line]
    page.commands(lines)


def _pretraining(page: Page, folder: Path, scale: Scale) -> None:
    run = folder / PRETRAINING
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
    return {label: name for name, label in LABELS.items() if label > 0}
