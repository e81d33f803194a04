"""nnU-Net's logger for runs that have no Dice, and the services that a run can be followed on."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger, WandbLogger

from nnunet_ssl.integration.versions import is_first
from nnunet_ssl.loggers import WANDB, chosen_loggers, get_logger, pictures_may_leave
from nnunet_ssl.loggers.base import RunLogger
from nnunet_ssl.report.progress import draw_progress

ENABLED = "nnUNet_wandb_enabled"
Say = Callable[[str], None]


class PretextLogger(LocalLogger):
    """One value per epoch and key; keys beyond nnU-Net's own appear when they are first logged."""

    def __init__(self) -> None:
        super().__init__()
        keys = ("train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps")
        self.my_fantastic_logging: dict[str, list[Any]] = {key: [] for key in keys}

    def log(self, key: str, value: Any, epoch: int) -> None:
        """Store the value of an epoch; an epoch that is repeated after an interruption replaces its value."""
        values = self.my_fantastic_logging.setdefault(key, [])
        values[epoch:] = []
        values += [float("nan")] * (epoch - len(values))  # of epochs that had none
        values.append(value)

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw progress.png into the folder."""
        draw_progress(self.my_fantastic_logging, os.path.join(output_folder, "progress.png"))


def use_pretext_logger(logger: MetaLogger) -> None:
    """Swap the local half of nnU-Net's logger, leaving the services it logs to as they are."""
    logger.local_logger = PretextLogger()


def choose_wandb() -> None:
    """Before nnU-Net's trainer is made: NNUNET_SSL_LOGGERS=wandb means its own switch; one run there, not one per process.

    Raises SettingsError where NNUNET_SSL_LOGGERS names a logger that there is not, and where wandb is asked for and missing.
    """
    if not is_first():
        os.environ[ENABLED] = "0"
    elif WANDB in chosen_loggers():
        get_logger(WANDB)
        os.environ[ENABLED] = "1"


class _Pictured:
    """nnU-Net's logger for Weights & Biases, which takes pictures too."""

    leaves_folder = True

    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger
        self.update_config, self.log, self.log_summary = logger.update_config, logger.log, logger.log_summary

    def log_picture(self, key: str, file: Path, step: int) -> None:
        """A picture of an epoch."""
        self._logger.run.log({key: import_module(WANDB).Image(str(file))}, step=step)

    def finish(self) -> None:
        """The end of the process ends the run there."""


class _Guarded:
    """A logger whose failure costs what it would have logged, never the run."""

    def __init__(self, logger: RunLogger | _Pictured, name: str, say: Say) -> None:
        self._logger: RunLogger | _Pictured | None = logger
        self._name, self._say = name, say
        self.takes_pictures = not logger.leaves_folder or pictures_may_leave()

    def update_config(self, config: dict[str, Any]) -> None:
        """As `RunLogger`."""
        self._attempt("update_config", config)

    def log(self, key: str, value: Any, step: int) -> None:
        """As `RunLogger`; nnU-Net's times of day are no curve."""
        if not key.endswith("_timestamps"):
            self._attempt("log", key, value, step)

    def log_summary(self, key: str, value: Any) -> None:
        """As `RunLogger`."""
        self._attempt("log_summary", key, value)

    def log_picture(self, key: str, file: Path, step: int) -> None:
        """As `RunLogger`, where pictures may go there."""
        if self.takes_pictures:
            self._attempt("log_picture", key, file, step)

    def finish(self) -> None:
        """As `RunLogger`."""
        self._attempt("finish")

    def _attempt(self, what: str, *args: Any) -> None:
        if self._logger is None:
            return
        try:
            getattr(self._logger, what)(*args)
        except Exception as error:
            self._logger = None
            self._say(
                f"WARNING: the logger {self._name} failed and gets nothing more; the training goes on, and starts it anew when "
                f"it is continued. {type(error).__name__}: {error}"
            )


def attach_loggers(trainer: Any) -> None:
    """Log a trainer's run to the services of NNUNET_SSL_LOGGERS too, by the first process of it.

    Raises SettingsError for an unknown logger or a missing package; a service that cannot be reached costs a warning.
    """
    if not is_first():
        return
    say: Say = trainer.print_to_log_file
    meta: MetaLogger = trainer.logger
    meta.loggers = [
        _Guarded(_Pictured(one), WANDB, say) if isinstance(one, WandbLogger) else one for one in meta.loggers
    ]
    folder = Path(trainer.output_folder)
    config = {
        "plans": trainer.plans_manager.plans,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "dataset": trainer.dataset_json,
    }
    for name in chosen_loggers():
        logger_class = get_logger(name)
        if logger_class is None:
            continue  # nnU-Net made it
        try:
            logger = _Guarded(logger_class(folder, "/".join(folder.parts[-3:])), name, say)
        except Exception as error:
            say(
                f"WARNING: the logger {name} cannot start, the training goes on without it. {type(error).__name__}: {error}"
            )
            continue
        logger.update_config(config)
        meta.loggers.append(logger)
    kept = [one for one in meta.loggers if isinstance(one, _Guarded) and not one.takes_pictures]
    if kept:
        say(
            "Numbers and plans go to the loggers, pictures of the images stay in this folder. To send them too: --log-pictures."
        )


def log_picture(logger: MetaLogger, key: str, file: str, step: int) -> None:
    """Hand a PNG file of an epoch to all loggers that take pictures."""
    for one in logger.loggers:
        if isinstance(one, _Guarded):
            one.log_picture(key, Path(file), step)


def finish_loggers(logger: MetaLogger) -> None:
    """Tell the loggers that the training has reached its end."""
    for one in logger.loggers:
        if isinstance(one, _Guarded):
            one.finish()
