"""What nnU-Net writes: whole files, in folders that were tried before, and never a run for a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os.path import basename, join
from typing import Any

from nnunet_ssl.errors import CannotWrite
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.folders import require_writable
from nnunet_ssl.integration.logger import choose_wandb
from nnunet_ssl.messages import say_errors_in_one_line
from nnunet_ssl.report.attempt import attempt_to_draw

SPLITS = "splits_final.json"
WRITERS = (
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner",
)

Say = Callable[[str], None]


def begin_run(plans: Mapping[str, Any]) -> None:
    """What a trainer of ours does before nnU-Net makes its folder and its logger; raises CannotWrite, SettingsError."""
    say_errors_in_one_line()
    choose_wandb()
    results = os.environ.get("nnUNet_results")  # noqa: SIM112  nnU-Net spells it so
    if results:
        require_writable(join(results, str(plans["dataset_name"])))


def without_files(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """What a trainer is told of dataset.json: everything but the paths and names of cases.

    Of a corpus these are megabytes that every checkpoint and logger would carry, and nobody's business but the importer's.
    """
    return {key: value for key, value in dataset_json.items() if key != "dataset"}


@contextmanager
def whole_files(say: Say = print) -> Iterator[None]:
    """While the block runs, nnU-Net's trainer and planner write plans, dataset.json and splits as `atomic_write` does.

    The splits are known whether they can be stored or not: a data set that is read-only costs a line, which `say` tells.
    """
    # Whoever writes has been loaded; loading a trainer for a planner would take seconds.
    loaded: list[Any] = [sys.modules[name] for name in WRITERS if name in sys.modules]
    before = {module: module.save_json for module in loaded}

    def save(content: Any, path: str, indent: int = 4, sort_keys: bool = True) -> None:
        try:
            write_json(content, path, indent, sort_keys)
        except CannotWrite as error:
            if basename(path) != SPLITS:
                raise
            say(f"The splits are not stored, the same will be made again: {error}")

    for module in before:
        module.save_json = save
    try:
        yield
    finally:
        for module, own in before.items():
            module.save_json = own


def let_pictures_fail(logger: Any, say: Say) -> None:
    """Make a logger of nnU-Net's warn where it cannot draw its curves."""
    draw = logger.plot_progress_png
    logger.plot_progress_png = lambda folder: attempt_to_draw(say, draw, folder)
