"""MLflow: a run on the server that MLFLOW_TRACKING_URI names, in the experiment MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from nnunet_ssl.files.atomic import write_text
from nnunet_ssl.loggers.base import RunLogger, flat

RUN_FILE = "mlflow_run.txt"  # which run on the server this is
EXPERIMENT = "nnunet"
LONGEST = 500  # characters of a value that every server takes
AT_ONCE = 100  # parameters that MLflow takes in one call


class MLflowLogger(RunLogger):
    """Curves, settings and pictures; a continued run goes on in its own run on the server."""

    def __init__(self, folder: Path, name: str) -> None:
        self.client = MlflowClient()
        self.run_id = self._known(folder) or self._begin(folder, name)
        self.client.set_terminated(self.run_id, "RUNNING")

    def _known(self, folder: Path) -> str | None:
        """The run of an earlier start, if this server knows it."""
        file = folder / RUN_FILE
        if not file.is_file():
            return None
        try:
            return self.client.get_run(file.read_text().strip()).info.run_id
        except MlflowException:
            return None

    def _begin(self, folder: Path, name: str) -> str:
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self.client.get_experiment_by_name(wanted)
        experiment = self.client.create_experiment(wanted) if known is None else known.experiment_id
        run_id = self.client.create_run(experiment, run_name=name).info.run_id
        write_text(f"{run_id}\n", folder / RUN_FILE)
        return run_id

    def update_config(self, config: dict[str, Any]) -> None:
        """Parameters; plans and dataset.json as files. What a continued run says otherwise stays what it was first."""
        documents = {key: config[key] for key in ("plans", "dataset") if key in config}
        for key, content in documents.items():
            self.client.log_dict(self.run_id, content, f"{key}.json")
        plain = flat({key: value for key, value in config.items() if key not in documents})
        known = self.client.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:LONGEST]) for key, value in plain.items() if key not in known]
        for first in range(0, len(new), AT_ONCE):
            self.client.log_batch(self.run_id, params=new[first : first + AT_ONCE])

    def log(self, key: str, value: float, step: int) -> None:
        """A point of a curve."""
        self.client.log_metric(self.run_id, key, float(value), step=step)

    def log_summary(self, key: str, value: float) -> None:
        """A metric with one point."""
        self.client.log_metric(self.run_id, key, float(value))

    def log_picture(self, key: str, file: Path, step: int) -> None:
        """A file among the run's artefacts."""
        self.client.log_artifact(self.run_id, str(file), key)

    def finish(self) -> None:
        """Finished; a run that was stopped or killed stays "running" there until it is continued."""
        self.client.set_terminated(self.run_id, "FINISHED")
