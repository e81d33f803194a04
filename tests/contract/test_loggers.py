"""Runs that are followed elsewhere: numbers and pictures arrive once, a failure costs the logger and never the run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_ssl import loggers
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.integration import logger as integration
from nnunet_ssl.loggers.base import RunLogger, flat
from nnunet_ssl.testing.tiny_data import DATASET_JSON
from nnunet_ssl.testing.tiny_training import TinyTraining, losses
from nnunet_ssl.trainers.finetuning import SSLScratchTrainer
from nnunet_ssl.trainers.pretraining import trainer_class

TWO_EPOCHS = {"num_epochs": 2, "preview_nifti": True}


class Listener(RunLogger):
    """Keeps what it is told; fails from its `patience`th word on."""

    made: list[Listener] = []  # noqa: RUF012  # of this test
    patience = 10_000

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.heard: list[tuple[Any, ...]] = []
        Listener.made.append(self)

    def _hear(self, *what: Any) -> None:
        if len(self.heard) >= self.patience:
            raise ConnectionError("the server is gone")
        self.heard.append(what)

    def update_config(self, config: dict[str, Any]) -> None:
        self._hear("config", config)

    def log(self, key: str, value: float, step: int) -> None:
        self._hear(key, value, step)

    def log_summary(self, key: str, value: float) -> None:
        self._hear("summary", key, value)

    def log_picture(self, key: str, file: Path, step: int) -> None:
        self._hear("picture", key, file.name, step)

    def finish(self) -> None:
        self._hear("finished")


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> type[Listener]:
    """Registered as "listener", and chosen."""
    monkeypatch.setattr(Listener, "made", [])
    entry = SimpleNamespace(name="listener", load=lambda: Listener)
    monkeypatch.setattr(loggers, "entry_points", lambda group: [entry])
    monkeypatch.setenv(loggers.CHOSEN, "listener")
    return Listener


def log_of(trainer: Any) -> str:
    """What the run's log says."""
    return Path(trainer.log_file).read_text()


def test_hears_every_number_once_and_no_picture_unless_asked(listener: Any, tiny_training: TinyTraining) -> None:
    trainer = tiny_training.trainer("mae", tiny_training.plans("primus", TWO_EPOCHS))
    trainer.run_training()
    (one,) = listener.made
    assert one.folder == Path(trainer.output_folder)
    assert one.name == f"{trainer.plans_manager.dataset_name}/{Path(trainer.output_folder_base).name}/fold_all"
    assert [h[1:] for h in one.heard if h[0] == "train_losses"] == [(v, n) for n, v in enumerate(losses(trainer)[0])]
    assert {h[0] for h in one.heard} >= {"val_losses", "lrs", "val_explained_variance", "val_yardstick", "config"}
    assert not [h for h in one.heard if h[0] == "picture" or h[0].endswith("timestamps")]
    assert one.heard[-1] == ("finished",)
    configs = [h[1] for h in one.heard if h[0] == "config"]
    assert configs[0]["plans"]["dataset_name"] == trainer.plans_manager.dataset_name
    assert configs[1]["hparas"]["method"] == "mae"
    assert log_of(trainer).count("--log-pictures") == 1


@pytest.mark.parametrize("what", ["mae", SSLScratchTrainer])
def test_no_name_of_a_case_and_no_path_leaves(what: Any, listener: Any, tiny_training: TinyTraining) -> None:
    """A corpus' dataset.json names every file; plans and the rest of dataset.json go to loggers, of either kind of training."""
    plans = {**tiny_training.plans("unet"), "continue_training": False}
    described = {**DATASET_JSON, "dataset": {"secret_patient": {"images": ["/secret/patient.nii.gz"]}}}
    cls: Any = trainer_class(what) if isinstance(what, str) else what
    trainer = cls(plans, "3d_fullres", "all", described, torch.device("cpu"))
    assert listener.made[0].heard
    for told in (str(listener.made[0].heard), str(trainer.dataset_json), str(trainer.my_init_kwargs)):
        assert "file_ending" in told
        assert "secret" not in told


def test_a_curve_that_missed_an_epoch_stays_in_its_place() -> None:
    logger = integration.PretextLogger()
    for epoch, value in ((0, 1.0), (2, 3.0), (5, 6.0)):
        logger.log("probe_Dice", value, epoch)
    logger.log("probe_Dice", 4.0, 3)  # as after a resume
    kept = logger.my_fantastic_logging["probe_Dice"]
    assert [str(value) for value in kept] == ["1.0", "nan", "3.0", "4.0"]


def test_pictures_leave_the_folder_on_request(
    listener: Any, tiny_training: TinyTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(loggers.PICTURES, "1")
    trainer = tiny_training.trainer("mae", tiny_training.plans("primus", TWO_EPOCHS))
    trainer.run_training()
    pictures = [h[1:] for h in listener.made[0].heard if h[0] == "picture"]
    assert pictures == [("preview", "epoch_0001.png", 0), ("preview", "epoch_0002.png", 1)]
    assert "--log-pictures" not in log_of(trainer)
    volumes = {p.name for p in (Path(trainer.output_folder) / "previews" / "epoch_0002").iterdir()}
    assert volumes >= {"input.nii.gz", "hidden.nii.gz", "reconstruction.nii.gz"}


@pytest.mark.parametrize("patience", [0, 1, 7])
def test_a_failing_logger_costs_no_run(
    patience: int, listener: Any, tiny_training: TinyTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "patience", patience)
    plans = tiny_training.plans(
        "unet", None, {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    )
    trainer = tiny_training.trainer(SSLScratchTrainer, plans)
    trainer.run_training()
    assert len(listener.made[0].heard) == patience
    assert log_of(trainer).count("WARNING: the logger listener failed") == 1
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


def test_a_logger_that_cannot_start_costs_no_run(
    listener: Any, tiny_training: TinyTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(listener, "__init__", refuse)
    trainer = tiny_training.trainer("mae", tiny_training.plans("unet"))
    assert "the logger listener cannot start, the training goes on without it. ConnectionError" in log_of(trainer)
    assert trainer.logger.loggers == []


def test_others_than_the_first_process_log_nowhere(listener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "is_first", lambda: False)
    monkeypatch.setenv(integration.ENABLED, "1")
    trainer = SimpleNamespace(logger=SimpleNamespace(loggers=[]))
    integration.choose_wandb()
    integration.attach_loggers(trainer)
    assert (listener.made, trainer.logger.loggers) == ([], [])
    assert os.environ[integration.ENABLED] == "0"


def test_wrong_and_missing_loggers_are_named_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loggers.CHOSEN, "tensorbord")
    with pytest.raises(SettingsError, match=r"Did you mean tensorboard\?"):
        loggers.require_loggers()
    for name, module in (("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "tensorboard")):
        monkeypatch.setenv(loggers.CHOSEN, name)
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            for loaded in ("nnunet_ssl.loggers.mlflow", "nnunet_ssl.loggers.tensorboard", "torch.utils.tensorboard"):
                without.delitem(sys.modules, loaded, raising=False)
            with pytest.raises(SettingsError, match=f"pip install {name}"):
                loggers.require_loggers()


def test_nested_settings_become_one_level() -> None:
    assert flat({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_tensorboard_shows_a_continued_run_once(tiny_training: TinyTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch that was logged before the run was killed comes again: its first value is gone."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(loggers.CHOSEN, "tensorboard")
    plans = tiny_training.plans("primus", {"num_epochs": 3})
    first = tiny_training.trainer("mae", plans)
    first.initialize()
    first.logger.log("train_losses", 5.0, 0)
    first.logger.log("train_losses", 77.0, 1)  # of an epoch that is lost
    first.logger.loggers[0].finish()
    second = tiny_training.trainer("mae", plans)
    second.run_training()
    shown = EventAccumulator(str(Path(second.output_folder) / "tensorboard"))
    shown.Reload()
    for kind, values in zip(("train", "val"), losses(second), strict=True):
        points = shown.Scalars(f"losses/{kind}")
        assert [p.step for p in points] == [0, 1, 2]
        assert [p.value for p in points] == pytest.approx(values)
    assert [picture.step for picture in shown.Images("preview")] == [
        0,
        1,
        2,
    ]  # they stay in the folder: no flag is needed


def test_mlflow_continues_its_own_run(
    tiny_training: TinyTraining, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/runs")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv(loggers.CHOSEN, "mlflow")
    plans = tiny_training.plans("primus", {"num_epochs": 2})
    tiny_training.trainer("mae", plans)
    trainer = tiny_training.trainer("mae", plans)
    trainer.run_training()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("nnunet").experiment_id])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "train_losses")
    assert [p.step for p in points] == [0, 1]
    assert [p.value for p in points] == pytest.approx(losses(trainer)[0])
    assert run.data.params["hparas.method"] == "mae"


def test_weights_and_biases_offline(tiny_training: TinyTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    monkeypatch.setenv(loggers.CHOSEN, "wandb")
    monkeypatch.setenv(loggers.PICTURES, "1")
    monkeypatch.setenv(integration.ENABLED, "0")
    trainer = tiny_training.trainer("mae", tiny_training.plans("primus", {"num_epochs": 2}))
    trainer.run_training()
    (kept,) = Path(trainer.output_folder).glob("wandb/offline-run-*/files/media/images")
    assert sorted(p.name[:10] for p in kept.iterdir()) == ["preview_0_", "preview_1_"]
    assert "failed" not in log_of(trainer)
