"""The demo's main job as a list of commands: make data, pre-train without labels, compare with training from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_ssl.demo.data import UNLABELLED
from nnunet_ssl.demo.steps import Step

RAW, PREPROCESSED, RESULTS, COMPARISON = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "comparison"
PRETRAINING = f"{RESULTS}/{UNLABELLED}/SSLMAETrainer__nnUNetSSLResEncTinyPlans__3d_fullres/fold_all"


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


def demo_steps(scale: Scale, seed: int, device: str) -> list[Step]:
    """All steps in order."""
    return [
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
        _command(
            "compare",
            "Train on the labelled cases from scratch and from the pre-training, and test both",
            f"nnUNetv2_pretrain_compare 902 -pretrained_weights {PRETRAINING}/checkpoint_final.pth "
            f"--epochs {scale.finetuning_epochs} --iterations-per-epoch {scale.finetuning_iterations} -np 2 "
            f"-device {device} -o {COMPARISON}",
        ),
    ]


def _command(name: str, title: str, line: str) -> Step:
    return Step(name, title, argv=tuple(line.split()))
