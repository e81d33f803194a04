"""The tiny data set of `nnunet_ssl.testing` and plans for it, in this process and in several."""

from __future__ import annotations

import multiprocessing
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssl.testing import TinyTraining, tiny_training
from nnunet_ssl.testing.tiny_data import DATASET_JSON

__all__ = ["tiny_training"]


@pytest.fixture
def preprocessed_dataset(tiny_training: TinyTraining) -> Path:
    """nnU-Net's three folders with the tiny data set preprocessed; returns the folder they lie in."""
    return tiny_training.folder


@pytest.fixture
def in_processes(preprocessed_dataset, dataset_json, tmp_path):
    """Function (what of `trained_by_many`, number of processes, cases): lets so many processes do it together."""
    folder = str(Path(__file__).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # child processes import it by name
    environment = {k: v for k, v in os.environ.items() if k.startswith("nnUNet_")}
    context = multiprocessing.get_context("forkserver")  # imports everything once, not once per process
    context.set_forkserver_preload(["trained_by_many"])

    def run(work, world, cases):
        arguments = (world, str(tmp_path), environment, cases, deepcopy(dataset_json))
        started = [context.Process(target=work, args=(rank, *arguments)) for rank in range(world)]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=200)
            assert process.exitcode == 0

    return run


@pytest.fixture
def make_trainer(tiny_training: TinyTraining):
    """Function (trainer class, plans, fold) -> trainer on the CPU."""
    return tiny_training.trainer


@pytest.fixture
def dataset_json() -> dict[str, Any]:
    """dataset.json of the tiny data set."""
    return deepcopy(DATASET_JSON)


@pytest.fixture
def plans_for(tiny_training: TinyTraining):
    """Function (backbone, ssl block, finetune block) -> plans."""
    return tiny_training.plans
