"""Trainings on the tiny data set in this process: made, run to their end, stopped, resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssl.testing.tiny_data import DATASET_JSON, tiny_plans, write_dataset
from nnunet_ssl.trainers.pretraining import trainer_class


class TinyTraining:
    """What a test wants of the tiny data set, whose nnU-Net folders lie in `folder`."""

    # Runs nobody disturbed, by task, backbone, epochs and settings: made once, as they repeat to the last bit.
    _finished: dict[tuple[Any, ...], Any] = {}  # noqa: RUF012  # shared on purpose

    def __init__(self, folder: Path, others: pytest.TempPathFactory) -> None:
        self.folder, self._others = folder, others

    def plans(
        self, backbone: str, ssl: dict[str, Any] | None = None, finetune: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Plans with a tiny "unet" or "primus"; ssl, finetune: entries of those blocks. Four epochs of three iterations."""
        return tiny_plans(backbone, ssl, finetune)

    def trainer(self, of: str | type, plans: dict[str, Any], fold: int | str = "all") -> Any:
        """The trainer of a task, or of a trainer class, on the CPU."""
        cls: Any = trainer_class(of) if isinstance(of, str) else of
        plans = {**deepcopy(plans), "continue_training": False}
        return cls(plans, "3d_fullres", fold, deepcopy(DATASET_JSON), torch.device("cpu"))

    def finished(self, method: str, backbone: str, epochs: int, settings: dict[str, Any] | None = None) -> Any:
        """The trainer of a run that nobody disturbed, validation included."""
        key = (method, backbone, epochs, str(settings))
        if key not in self._finished:
            trainer = self.trainer(method, self.plans(backbone, {"num_epochs": epochs, method: dict(settings or {})}))
            trainer.output_folder = str(self._others.mktemp("uninterrupted"))
            trainer.log_file = f"{trainer.output_folder}/training_log.txt"
            trainer.run_training()
            trainer.perform_actual_validation()
            self._finished[key] = trainer
        return self._finished[key]

    def resumed(self, trainer: Any) -> Any:
        """The trainer, new, with the state that another one left in its result folder."""
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
        return trainer


@contextmanager
def prepare_tiny_training(folder: Path, others: pytest.TempPathFactory) -> Iterator[TinyTraining]:
    """Write the tiny data set into `folder`, and have nnU-Net's variables name it inside the context; others: for runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in write_dataset(folder).items():
            patch.setenv(name, value)
        yield TinyTraining(folder, others)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """All weights of network and heads, copied."""
    return {k: v.detach().clone() for k, v in trainer.method.state_dict().items()}


def losses(trainer: Any) -> list[list[float]]:
    """Of all epochs: training and validation."""
    logging = trainer.logger.local_logger.my_fantastic_logging
    return [logging["train_losses"], logging["val_losses"]]


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal to the last bit."""
    assert first.keys() == second.keys()
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
