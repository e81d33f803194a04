"""Train from scratch with nnU-Net's own loop, be sent SIGUSR1 in the second epoch: JOB.json says with which plans.

For tests/compat/coming.py: the announced changes concern nnU-Net's loop, its optimiser, its signals and how it loads cases.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from nnunet_ssl.trainers.finetuning import SSLScratchTrainer

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    trainer = SSLScratchTrainer(job["plans"], "3d_fullres", "all", job["dataset_json"], torch.device("cpu"))  # type: ignore[arg-type]
    step = trainer.train_step

    def train_step(batch: dict[str, Any]) -> dict[str, Any]:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(batch)

    trainer.train_step = train_step  # type: ignore[method-assign]
    trainer.run_training()
