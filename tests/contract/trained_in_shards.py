"""What the processes do that tests/contract/test_sharding.py starts: train, stop, continue, sharded or not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from nnunet_ssl.integration.pretrained_weights import load_into
from nnunet_ssl.integration.versions import is_first
from nnunet_ssl.trainers.distributed import sharding
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.trainers.pretraining import trainer_class

FINAL, FIRST = "checkpoint_final.pth", "after_first_epoch.pth"


def prepare_trainer(folder: Path, method: str, plans: dict[str, Any], dataset_json: dict[str, Any]) -> Any:
    """A trainer that writes into `folder` and keeps the checkpoint of its first epoch there."""
    plans = {**deepcopy(plans), "continue_training": False}
    trainer: Any = trainer_class(method)(plans, "3d_fullres", "all", dataset_json, torch.device("cpu"))  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    trainer.output_folder, trainer.log_file = str(folder), str(folder / "log.txt")
    trainer.initialize()
    trainer.recipe = replace(trainer.recipe, grad_clip=0.1)  # so that gradients are clipped in every step
    original = trainer.on_epoch_end

    def on_epoch_end() -> None:
        original()
        if trainer.current_epoch == 1 and is_first():
            shutil.copyfile(folder / "checkpoint_latest.pth", folder / FIRST)

    trainer.on_epoch_end = on_epoch_end
    return trainer


def stop_in_second_epoch(trainer: Any) -> None:
    """The last process gets SIGTERM before the second iteration of the second epoch; all have to leave."""
    original = trainer.train_step

    def train_step(batch: dict[str, Any]) -> dict[str, Any]:
        last = not trainer.is_ddp or dist.get_rank() == dist.get_world_size() - 1
        if last and (trainer.current_epoch, trainer.position.iteration) == (1, 1):
            signal.raise_signal(signal.SIGTERM)
        return original(batch)

    trainer.train_step = train_step
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == 128 + signal.SIGTERM


def local_bytes(trainer: Any) -> dict[str, list[int]]:
    """Bytes [this process' own, of the whole] of the weights and of the optimiser's states."""
    states = [v for s in trainer.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.ndim]
    kinds = {"weights": list(trainer.method.parameters()), "optimiser": states}
    local = {k: [getattr(t, "_local_tensor", t).untyped_storage().nbytes() for t in v] for k, v in kinds.items()}
    return {k: [sum(local[k]), sum(t.numel() * t.element_size() for t in v)] for k, v in kinds.items()}


def work(rank: int, world: int, label: str, folder: str, environment: dict, jobs: list, dataset_json: dict) -> None:
    """Do every job (folder, method, plans, what) as one of `world` processes.

    what: "train" and validate, "stop" on SIGTERM, "load" the weights of a checkpoint, or "continue"; the last two from the
    path behind the colon.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    stepping.autocast = lambda device: nullcontext()  # type: ignore[assignment]  # half precision rounds by batch size
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_{label}", rank=rank, world_size=world)
    for name, method, plans, what in jobs:
        place = Path(folder) / label / name
        trainer = prepare_trainer(place, method, plans, dataset_json)
        deed, _, source = what.partition(":")
        if deed == "train":
            trainer.run_training()
            (place / f"bytes_{rank}.json").write_text(json.dumps(local_bytes(trainer)))
            trainer.perform_actual_validation()
        elif deed == "stop":
            stop_in_second_epoch(trainer)
        elif deed == "load":
            report = load_into(trainer.network, Path(folder) / source)
            weights = sharding.whole(trainer.method.bare_network.state_dict(keep_vars=True))
            if rank == 0:
                torch.save({"weights": weights, "report": report.table()}, place / "loaded.pth")
        else:
            trainer.load_checkpoint(str(Path(folder) / source))
            trainer.run_training()
    if world > 1:
        dist.barrier()
    os._exit(0)  # gloo's threads do not always survive an orderly exit
