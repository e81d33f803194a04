"""The two sides of `against_nnssl.py`, this framework and nnssl, and the processes of their own they run in.

`Worker` starts `python against_nnssl_sides.py ours|nnssl` in an environment. That process takes calls as JSON lines on its
standard input and answers on its standard output; only its own side is imported. Both sides get the same images, patch,
batch and geometry of views.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

GIB = 1 << 30
TICKS = os.sysconf("SC_CLK_TCK")
DATASET_ID = 745
DATASET = f"Dataset{DATASET_ID}_Comparison"

# Method and backbone here; module and class in nnssl.training.nnsslTrainer.
COUNTERPARTS = {
    ("mae", "resenc_l"): "masked_image_modeling.BaseMAETrainer.BaseMAETrainer",
    ("mae", "primus_m"): "masked_image_modeling.BaseEvaMAETrainer.BaseEvaMAETrainer",
    ("spark3d", "resenc_l"): "masked_image_modeling.SparkTrainer.SparkMAETrainer",
    ("simmim", "primus_m"): "masked_image_modeling.SimMIMEvaTrainer.SimMIMEvaTrainer",
    ("models_genesis", "resenc_l"): "models_genesis.ModelGenesisTrainer.ModelGenesisTrainer",
    ("models_genesis", "primus_m"): "models_genesis.ModelsGenesisEvaTrainer.ModelGenesisEvaTrainer",
    ("volume_fusion", "resenc_l"): "volume_fusion.VolumeFusionTrainer.VolumeFusionTrainer",
    ("volume_fusion", "primus_m"): "volume_fusion.VolumeFusionEvaTrainer.VolumeFusionEvaTrainer",
    ("voco", "resenc_l"): "volume_contrastive.vocoTrainer.VoCoTrainer",
    ("voco", "primus_m"): "volume_contrastive.vocoEvaTrainer.VoCoEvaTrainer",
    ("swin_unetr", "resenc_l"): "swinunetr_pretrain.SwinUNETRTrainer.SwinUNETRTrainer",
    ("swin_unetr", "primus_m"): "swinunetr_pretrain.SwinUNETREvaTrainer.SwinUNETREvaTrainer",
    ("simclr", "resenc_l"): "simCLR.simCLRTrainer.SimCLRTrainer",
    ("simclr", "primus_m"): "simCLR.simCLREvaTrainer.SimCLREvaTrainer",
}
VOCO_GRID, VOCO_TARGETS = (2, 2, 1), 4  # base crops per axis, further crops per image


def region_of(method: str, patch: int) -> tuple[int, int, int]:
    """Voxels read per image; the network sees `patch` voxels per axis, as crops of the region where it is larger."""
    if method == "voco":
        return VOCO_GRID[0] * patch, VOCO_GRID[1] * patch, VOCO_GRID[2] * patch
    if method == "simclr":
        return 3 * patch // 2, 3 * patch // 2, patch
    return patch, patch, patch


class Ours:
    """nnunet_ssl, as `nnUNetv2_pretrain` runs it; with FLOAT32=1 in the environment without autocast."""

    def __init__(self) -> None:
        from nnunet_ssl.trainers.device import precision

        if os.environ.get("FLOAT32") == "1":
            precision.autocast_dtype = lambda device: None  # before anything else imports it

    def prepare(self, backbones: list[str]) -> None:
        """Plan and preprocess the images for the backbones."""
        for backbone in backbones:
            self._plans(backbone)

    def _plans(self, backbone: str) -> dict[str, Any]:
        from nnunet_ssl.cli.pretrain_flags import BACKBONES
        from nnunet_ssl.planners.prepare import prepare_corpus

        return prepare_corpus([DATASET], BACKBONES[backbone], num_processes=1)[0]

    def start(self, method: str, backbone: str, patch: int, batch: int, views_only: bool) -> dict[str, Any]:
        """Build trainer and loaders; the loaders' workers begin to read."""
        import torch
        from few_labels import CONFIGURATION, make_trainer

        from nnunet_ssl.trainers.device.precision import autocast_dtype
        from nnunet_ssl.trainers.pretraining import trainer_class

        crop, region = [patch] * 3, list(region_of(method, patch))
        own = {
            "voco": {"crop_size": crop, "grid": list(VOCO_GRID), "target_crops": VOCO_TARGETS},
            "simclr": {"crop_size": crop, "region_size": region, "pairs_per_image": 2},
        }
        settings = {"batch_size": batch, "num_epochs": 1000, "num_iterations_per_epoch": 10**6}
        plans = self._plans(backbone)
        plans["configurations"][CONFIGURATION]["patch_size"] = region
        settings |= {method: own[method]} if method in own else {}
        self.trainer = trainer = make_trainer(trainer_class(method), plans, "all", "ssl", settings, "cpu")
        if views_only:
            trainer.initialize()
            trainer.dataloader_train, _ = trainer.get_dataloaders()
            trainer.network.train()
        else:
            trainer.on_train_start()
            trainer.on_train_epoch_start()
        precision = autocast_dtype(torch.device("cpu")) or torch.float32
        parameters = sum(p.numel() for p in trainer.method.parameters() if p.requires_grad)
        return {"precision": str(precision).removeprefix("torch."), "parameters": parameters}

    def steps(self, times: int) -> float:
        """Training iterations, data loading included; the last loss."""
        for _ in range(times):
            loss = self.trainer.train_step(next(self.trainer.dataloader_train))["loss"]
        return float(loss)

    def views(self, times: int) -> None:
        """Batches up to where the network begins: read, augment, collate, and `Method.prepare`, masks included."""
        from nnunet_ssl.trainers.data.corpus import TRAINING
        from nnunet_ssl.trainers.loop import stepping

        prepared: list[Any] = []
        whole, stepping.run_prepared = stepping.run_prepared, lambda *arguments: prepared.append(arguments[1])
        try:
            for step in range(times):
                stepping.run_batch(self.trainer, next(self.trainer.dataloader_train), TRAINING, step)
        finally:
            stepping.run_prepared = whole
        if len(prepared) != times:
            raise RuntimeError(f"{times} batches were read, but {len(prepared)} reached run_prepared.")


class Nnssl:
    """nnssl's own trainers with another patch and batch size, driven through the calls of its training loop."""

    def prepare(self, backbones: list[str]) -> None:
        """nnssl's fingerprint, plans and preprocessing, unless they are there; the same for all backbones."""
        from nnssl.experiment_planning import plan_and_preprocess_api as api
        from nnssl.paths import nnssl_preprocessed

        if (Path(nnssl_preprocessed) / DATASET / "valid_imgs.json").is_file():
            return
        api.extract_fingerprint_dataset(DATASET_ID, num_processes=1, verbose=False)
        api.plan_experiment_dataset(DATASET_ID)
        api.preprocess_dataset(DATASET_ID, num_processes=[1])

    def start(self, method: str, backbone: str, patch: int, batch: int, views_only: bool) -> dict[str, Any]:
        """Build trainer and loaders; the loaders' workers begin to read."""
        import torch
        from nnssl.experiment_planning.experiment_planners.plan import Plan
        from nnssl.paths import nnssl_preprocessed

        module, _, name = COUNTERPARTS[method, backbone].rpartition(".")
        trainer_class = getattr(import_module(f"nnssl.training.nnsslTrainer.{module}"), name)
        folder, region = Path(nnssl_preprocessed) / DATASET, region_of(method, patch)
        arguments: dict[str, Any] = {
            "plan": Plan.load_from_file(str(folder / "nnsslPlans.json")),
            "configuration_name": "onemmiso",
            "fold": 0,
            "pretrain_json": json.loads((folder / "pretrain_data__onemmiso.json").read_text()),
            "device": torch.device("cpu"),
        }
        if method == "voco":
            arguments |= {"patch_size": region, "base_crop_count": VOCO_GRID, "target_crop_count": VOCO_TARGETS}
        if method == "simclr":
            arguments |= {"patch_size": region, "crop_size": (patch,) * 3, "num_crops_per_image": 2}
        self.trainer = trainer = trainer_class(**arguments)
        trainer.config_plan.patch_size = region
        trainer.total_batch_size = batch
        if method == "volume_fusion":  # the longest box follows the patch, as in its constructor
            trainer.vf_subpatch_size = [(8, 1 + patch * 5 // 8)] * 3
        if views_only:
            trainer._set_batch_size()
            trainer.dataloader_train, _ = trainer.get_dataloaders()
            return {}
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        return {"precision": "float32", "parameters": sum(p.numel() for p in trainer.network.parameters())}

    def steps(self, times: int) -> float:
        """Training iterations, data loading included; the last loss."""
        for _ in range(times):
            loss = self.trainer.train_step(next(self.trainer.dataloader_train))["loss"]
        return float(loss)

    def views(self, times: int) -> None:
        """Batches as they reach the training step: read, augmented, collated; masks are made later and not counted."""
        for _ in range(times):
            next(self.trainer.dataloader_train)


def serve(side: object) -> None:
    """Answer calls until the input ends; whatever the libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        call: Mapping[str, Any] = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                answer = {"result": getattr(side, call["call"])(**call["arguments"])}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answer |= {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A process of one framework with its workers; stopped whenever it has nothing to answer."""

    def __init__(
        self, name: str, python: str, folder: Path, environment: dict[str, str], script: str = __file__
    ) -> None:
        self.log = folder / f"{name}.log"
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [python, script, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip
        os.killpg(self.process.pid, signal.SIGSTOP)

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Answer of a call, with its seconds and the CPU seconds of the process and its workers; raises RuntimeError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        before = self._cpu_of_workers()
        os.killpg(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(json.dumps({"call": name, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process ended with {self.process.wait()}, see {self.log}")
        os.killpg(self.process.pid, signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{answer['error']} (see {self.log})")
        answer["cpu"] += self._cpu_of_workers() - before
        return answer

    def _workers(self) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                group = int(stat.read_text().rpartition(")")[2].split()[2])
            except OSError:  # it has ended meanwhile
                continue
            if group == self.process.pid and int(stat.parent.name) != self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def _cpu_of_workers(self) -> float:
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self._workers()]
        return sum(int(f[11]) + int(f[12]) for f in fields) / TICKS

    def forget_peak(self) -> None:
        """Look for a new peak of memory from here on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def memory(self) -> tuple[float, float]:
        """GiB: peak of the process, and what its workers hold beyond what they share with it."""
        workers = [Path(f"/proc/{pid}/smaps_rollup") for pid in self._workers()]
        private = sum(_kilobytes(file, "Private_Clean") + _kilobytes(file, "Private_Dirty") for file in workers)
        return _kilobytes(Path(f"/proc/{self.process.pid}/status"), "VmHWM") * 1024 / GIB, private * 1024 / GIB

    def end(self) -> None:
        """Kill the process and its workers: nothing of theirs is wanted any more."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _kilobytes(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{name}:"))


if __name__ == "__main__":
    serve(Ours() if sys.argv[1] == "ours" else Nnssl())
