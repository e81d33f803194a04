"""The demo's main job as a list of commands: pre-train without labels, fine-tune, train the twin, predict, score."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ssl.demo.data import LABELLED, UNLABELLED
from nnunet_ssl.demo.steps import Step
from nnunet_ssl.files.atomic import write_json

CONFIGURATION = "3d_fullres"
PLANNER = "SSLPlannerResEncTiny"
PLANS = "nnUNetSSLResEncTinyPlans"
RAW, PREPROCESSED, RESULTS, PREDICTIONS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions"
TRAINERS = {"from scratch": "SSLScratchTrainer", "fine-tuned": "SSLFinetuneTrainer"}
PLANS_FILE = f"{PREPROCESSED}/{LABELLED}/{PLANS}.json"


@dataclass(frozen=True)
class Scale:
    """How much the demo does."""

    unlabelled: int
    labelled: int
    test: int
    pretraining_epochs: int
    pretraining_iterations: int
    finetuning_epochs: int
    finetuning_iterations: int


FULL = Scale(40, 4, 12, 16, 30, 10, 25)
QUICK = Scale(6, 2, 2, 2, 3, 2, 3)


def run_folder(dataset: str, trainer: str) -> str:
    """Where nnU-Net keeps a training run, relative to the demo's folder."""
    return f"{RESULTS}/{dataset}/{trainer}__{PLANS}__{CONFIGURATION}/fold_all"


def prediction_folder(run: str) -> str:
    """Where the segmentations of "from scratch" or "fine-tuned" lie, relative to the demo's folder."""
    return f"{PREDICTIONS}/{run.replace(' ', '_')}"


def finetune_block(scale: Scale, seed: int) -> dict[str, Any]:
    """The short schedule that both trainings on labels share."""
    return {
        "num_epochs": scale.finetuning_epochs,
        "num_iterations_per_epoch": scale.finetuning_iterations,
        "num_val_iterations_per_epoch": 2,
        "optimizer": "adamw",
        "initial_lr": 1e-3,  # said here, because the trainers' defaults differ and only the start shall
        "seed": seed,
    }


def demo_steps(scale: Scale, seed: int, device: str) -> list[Step]:
    """All steps in order."""
    checkpoint = f"{run_folder(UNLABELLED, 'SSLMAETrainer')}/checkpoint_final.pth"
    block = finetune_block(scale, seed)
    where = f'plans["configurations"]["{CONFIGURATION}"]["finetune"]'

    def shorten_schedule(folder: Path) -> None:
        plans = json.loads((folder / PLANS_FILE).read_text(encoding="utf-8"))
        plans["configurations"][CONFIGURATION].setdefault("finetune", {}).update(block)
        write_json(plans, folder / PLANS_FILE, indent=4)

    steps = [
        _command(
            "data",
            "Make and register the data",
            f"python -m nnunet_ssl.demo.data --raw {RAW} --seed {seed} --unlabelled {scale.unlabelled} "
            f"--labelled {scale.labelled} --test {scale.test}",
        ),
        _command(
            "pretrain",
            "Pre-train without labels",
            f"nnUNetv2_pretrain 901 --method mae --backbone resenc_tiny --epochs {scale.pretraining_epochs} "
            f"--iterations-per-epoch {scale.pretraining_iterations} --val-iterations-per-epoch 2 --batch-size 4 "
            f"--set mae.mask_block=8 --seed {seed} -np 2 -device {device}",
        ),
        _command("fingerprint", "Labelled data: fingerprint", "nnUNetv2_extract_fingerprint -d 902 -np 2"),
        _command("plan", "Labelled data: plan", f"nnUNetv2_plan_experiment -d 902 -pl {PLANNER}"),
        _command(
            "preprocess",
            "Labelled data: preprocess",
            f"nnUNetv2_preprocess -d 902 -plans_name {PLANS} -c {CONFIGURATION} -np 2",
        ),
        Step(
            "schedule",
            "Set a short schedule in the plans",
            edit=shorten_schedule,
            shown=(f"in {PLANS_FILE}:", f"{where}.update({json.dumps(block)})"),
        ),
    ]
    weights = {"from scratch": "", "fine-tuned": f" -pretrained_weights {checkpoint}"}
    train = {"from scratch": "Train from scratch", "fine-tuned": "Fine-tune"}
    for run, trainer in TRAINERS.items():
        title, model = train[run], f"-tr {trainer} -p {PLANS}"
        slug = run.replace(" ", "_")
        output = prediction_folder(run)
        steps += [
            _command(
                f"train_{slug}",
                title,
                f"nnUNetv2_train 902 {CONFIGURATION} all {model}{weights[run]} -device {device}",
            ),
            _command(
                f"predict_{slug}",
                f"Predict the test cases, {run}",
                f"nnUNetv2_predict -i {RAW}/{LABELLED}/imagesTs -o {output} -d 902 {model} -c {CONFIGURATION} -f all "
                f"--disable_tta -npp 1 -nps 1 -device {device}",
            ),
            _command(
                f"evaluate_{slug}",
                f"Dice on the test cases, {run}",
                f"nnUNetv2_evaluate_folder {RAW}/{LABELLED}/labelsTs {output} -djfile {output}/dataset.json "
                f"-pfile {output}/plans.json -np 1",
            ),
        ]
    return steps


def _command(name: str, title: str, line: str) -> Step:
    return Step(name, title, argv=tuple(line.split()))
