"""What the processes do that tests/contract/test_processes.py starts: train, or fail on purpose.

As a script under torchrun: python -m torch.distributed.run ... trained_by_many.py RUN.json trains what the file describes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from failing_compilers import compiling
from torch import distributed as dist

from nnunet_ssl.methods.mae import MAE
from nnunet_ssl.methods.simclr import SimCLR
from nnunet_ssl.trainers import launch
from nnunet_ssl.trainers.data import loading
from nnunet_ssl.trainers.loop import stepping, validation
from nnunet_ssl.trainers.pretraining import trainer_class
from nnunet_ssl.trainers.ssl_trainer import SSLTrainer

FINISHED_ON_DEVICE = "-device"  # end of the names of cases that rotate, scale and mirror as on a GPU


def train_in_float32(rank: int, world: int, folder: str, environment: dict, cases: dict, dataset_json: dict) -> None:
    """Train every case as one of `world` processes; the first writes {case: (weights, training losses)} to WORLD.pt."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    stepping.autocast = lambda device: nullcontext()  # type: ignore[assignment]  # half precision rounds by batch size
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_{world}", rank=rank, world_size=world)
    results = {}
    for name, (method, plans) in cases.items():
        plans = {**deepcopy(plans), "continue_training": False}
        trainer: Any = trainer_class(method)(plans, "3d_fullres", "all", dataset_json, torch.device("cpu"))  # type: ignore[arg-type]
        trainer.output_folder = f"{folder}/{world}_{name}"
        os.makedirs(trainer.output_folder, exist_ok=True)
        trainer.log_file = f"{trainer.output_folder}/log.txt"
        loading.finishes = lambda device, name=name: name.endswith(FINISHED_ON_DEVICE)  # type: ignore[misc]
        trainer.initialize()
        start = {k: v.clone() for k, v in trainer.method.state_dict().items()}
        trainer.run_training()
        losses = trainer.logger.local_logger.my_fantastic_logging["train_losses"]
        results[name] = (start, trainer.method.state_dict(), losses)
    if rank == 0:
        torch.save(results, f"{folder}/{world}.pt")
    if world > 1:
        dist.barrier()
    os._exit(0)  # gloo's threads do not always survive an orderly exit


def train_with_failures(rank: int, world: int, folder: str, environment: dict, cases: dict, dataset_json: dict) -> None:
    """Train every case without compiling, and again compiled, where the compiler of the last process fails as the case says.

    "alone": it does not compile at all. Every process writes {case: (expected weights, weights, log)} to failures_RANK.pt.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    stepping.autocast = lambda device: nullcontext()  # type: ignore[assignment]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_failures", rank=rank, world_size=world)

    def train(method: str, plans: dict, failure: str | None, place: Path) -> tuple[dict, str]:
        plans, device = {**deepcopy(plans), "continue_training": False}, torch.device("cpu")
        place.mkdir(exist_ok=True)
        with compiling(failure):
            trainer: Any = trainer_class(method)(plans, "3d_fullres", "all", dataset_json, device)  # type: ignore[arg-type]
            trainer.output_folder, trainer.log_file = str(place), str(place / "log.txt")
            trainer.run_training()
        weights = {k: v.detach().clone() for k, v in trainer.method.state_dict().items()}
        return weights, (place / "log.txt").read_text() if rank == 0 else ""

    results: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    for name, (method, plans, failure) in cases.items():
        own = "none" if rank < world - 1 else None if failure == "alone" else failure
        same = json.dumps([method, plans])
        if same not in expected:
            expected[same] = train(method, plans, None, Path(folder) / f"{name}_plain")[0]
        results[name] = (expected[same], *train(method, plans, own, Path(folder) / name))
    torch.save(results, f"{folder}/failures_{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads do not always survive an orderly exit


class Poison:
    """Makes of the loss of training step number `step` (0, 1, ...) something that is not finite."""

    def __init__(self, kind: str, steps: tuple[int, ...]) -> None:
        self.kind, self.steps, self.count = kind, steps, 0

    def __call__(self, loss: torch.Tensor) -> torch.Tensor:
        number, self.count = self.count, self.count + loss.requires_grad
        if not loss.requires_grad or number not in self.steps:
            return loss
        if self.kind == "loss":
            return loss + math.inf  # whose gradients are those of any other
        if self.kind == "both":
            return loss * math.nan
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss * 1


def train_poisoned(rank: int, world: int, folder: str, environment: dict, cases: dict, dataset_json: dict) -> None:
    """Train every case (method, plans, kind of poison); the last process' losses of the steps 0 and 4 are poisoned.

    Every process writes {case: [weights at the start, after the first step, ...]} to poisoned_RANK.pt.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_poisoned", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    step, forward, compared = SSLTrainer.train_step, MAE.forward, SimCLR.forward
    for name, (method, plans, kind) in cases.items():
        poison = Poison(kind, (0, 4) if rank == world - 1 else ())
        MAE.forward = lambda self, x, p=poison: (o := forward(self, x))._replace(loss=p(o.loss))  # type: ignore
        SimCLR.forward = lambda self, x, p=poison: (o := compared(self, x))._replace(loss=p(o.loss))  # type: ignore
        device, plans = torch.device("cpu"), {**deepcopy(plans), "continue_training": False}
        trainer: Any = trainer_class(method)(plans, "3d_fullres", "all", dataset_json, device)  # type: ignore[arg-type]
        place = Path(folder) / f"poisoned_{name}"
        place.mkdir(exist_ok=True)
        trainer.output_folder, trainer.log_file = str(place), str(place / "log.txt")
        trainer.initialize()
        kept = [[p.detach().clone() for p in trainer.network.parameters()]]

        def train_step(batch: Any, kept: Any = kept, trainer: Any = trainer) -> Any:
            result = step(trainer, batch)
            kept.append([p.detach().clone() for p in trainer.network.parameters()])
            return result

        trainer.train_step = train_step
        trainer.run_training()
        results[name] = kept
    torch.save(results, f"{folder}/poisoned_{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads do not always survive an orderly exit


def validate(rank: int, world: int, folder: str, environment: dict, cases: dict, dataset_json: dict) -> None:
    """Let every case (method, plans, number of held-out images) see its images as one of `world` processes.

    Untrained networks, the same in all. The first process is slow to write. Every process notes in NAME/RANK.json which
    images it has seen, and whether all was written when it was through.
    """
    os.environ.update(environment)
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_{world}", rank=rank, world_size=world)
    seen, run_case, write_json = [], validation.run_case, validation.write_json

    def noted(trainer: Any, corpus: Any, identifiers: list[str]) -> Any:
        seen.append(identifiers[0])
        return run_case(trainer, corpus, identifiers)

    def slow(content: Any, path: str) -> None:
        time.sleep(3)
        write_json(content, path)

    validation.run_case, validation.write_json = noted, slow
    for name, (method, plans, held_out) in cases.items():
        plans = {**deepcopy(plans), "continue_training": False}
        trainer: Any = trainer_class(method)(plans, "3d_fullres", "all", dataset_json, torch.device("cpu"))  # type: ignore[arg-type]
        place = Path(folder) / f"{world}_{name}"
        place.mkdir(exist_ok=True)
        trainer.output_folder, trainer.log_file = str(place), str(place / "log.txt")
        images = sorted(image for part in trainer.do_split() for image in part)
        trainer.do_split = lambda images=images, held_out=held_out: (images[held_out:], images[:held_out])
        seen.clear()
        trainer.perform_actual_validation()
        written = (place / "validation" / "summary.json").exists()
        (place / f"{rank}.json").write_text(json.dumps({"seen": seen, "written": written}))
    if world > 1:
        dist.barrier()
    os._exit(0)  # gloo's threads do not always survive an orderly exit


DEEDS = {
    "raise": lambda: (_ for _ in ()).throw(ValueError("the second process has had enough")),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


def sabotage(deed: str, once: str | None = None) -> None:
    """Make the second process do something in the second iteration of the second epoch; `once`: a file that remembers it."""
    original = SSLTrainer.train_step

    def train_step(self: SSLTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        now = dist.get_rank() == 1 and (self.current_epoch, self.position.iteration) == (1, 1)
        if now and (once is None or not Path(once).exists()):
            if once is not None:
                Path(once).touch()
            DEEDS[deed]()
        return original(self, batch)

    SSLTrainer.train_step = train_step  # type: ignore[method-assign]


def run_with(deed: str | None, once: str | None, fields: dict[str, Any]) -> launch.Run:
    """A run; whoever unpickles it is sabotaged."""
    if deed is not None:
        sabotage(deed, once)
    return launch.Run(**fields)


class SabotagedRun(launch.Run):
    """A run whose second process will do `deed`, see `DEEDS`."""

    deed: str

    def __reduce__(self) -> tuple[Any, ...]:
        fields = dict(self.__dict__)
        return run_with, (fields.pop("deed"), None, fields)


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    launch.join_torchrun("cpu")
    launch.launch(run_with(job["deed"], job["once"], job["fields"]), 1)
    dist.barrier()
    os._exit(0)
