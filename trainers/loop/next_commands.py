"""What to type after a pre-training: printed at the end of our command, and of stock nnUNetv2_train with our trainers."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from os.path import isdir, isfile, join

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.datasets import plans_file
from nnunet_ssl.planners.sharing.labels import FOLDER as LABELS
from nnunet_ssl.trainers.context import RunContext


def next_commands_of(trainer: RunContext) -> str:
    """`next_commands` for a trainer that has come to its end."""
    datasets = [trainer.plans_manager.dataset_name, *trainer.settings.datasets]
    checkpoint = join(trainer.output_folder, "checkpoint_final.pth")
    return next_commands(
        datasets, trainer.plans_manager.plans_name, trainer.configuration_name, trainer.fold, checkpoint
    )


def next_commands(
    datasets: Sequence[str], plans_name: str, configuration: str, fold: int | str, checkpoint: str
) -> str:
    """The commands that fine-tune a checkpoint: on those of its data sets that have labels, and on others.

    datasets: names of those it was pre-trained on; plans_name, configuration, fold: of the pre-training.
    """
    lines = [f"\nThe pre-trained network: {checkpoint}"]
    labelled = [name for name in datasets if has_labels(name)]
    for name in labelled:
        there = isfile(plans_file(name, plans_name))
        how = ["-p", plans_name, "-c", configuration] if there else []
        folds = ["-f", str(fold)] if fold != "all" else []
        command = ["nnUNetv2_finetune", str(dataset_id(name)), *how, *folds, "-pretrained_weights", checkpoint]
        lines += [
            f"Fine-tune it on {name}{', with the plans and images that are there' if there else ''}:",
            f"  {shlex.join(command)}",
        ]
    if labelled:
        lines += ["On another data set with labels, whose number stands for ID:"]
    else:
        lines += [
            f"{' and '.join(datasets)} has no labels to learn from. Fine-tune it on a data set that has; its number "
            "stands for ID:"
        ]
    lines += [f"  nnUNetv2_finetune ID -pretrained_weights {shlex.quote(checkpoint)}"]
    return "\n".join(lines)


def has_labels(name: str) -> bool:
    """Whether preprocessing has found segmentations in a data set; masks of a corpus are none."""
    folder = join(nnUNet_preprocessed, name, LABELS)
    return isdir(folder) and any(not file.startswith(".") for file in os.listdir(folder))
