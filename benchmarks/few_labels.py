"""What the comparison of methods does for one of them: pre-train without labels, fine-tune on few, test on others.

`methods.py` starts this file once per method and backbone, in a fresh process. Trainers and predictor are those behind
nnUNetv2_pretrain, nnUNetv2_train and nnUNetv2_predict, called directly: a start of each command would cost more than its
work here.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

CONFIGURATION = "3d_fullres"
POOL, FEW = 601, 610  # data set ids: all images without labels, the few with
SCRATCH = "scratch"  # takes the place of a method: training from random weights


@dataclass(frozen=True)
class Protocol:
    """Everything the results depend on; `plans` is the suffix of the plans' name."""

    data: str  # nnU-Net raw data set with imagesTr and labelsTr
    patch_size: tuple[int, ...]  # voxels
    pretrain_epochs: int
    finetune_epochs: int
    iterations_per_epoch: int
    val_iterations: int  # batches on which the losses before and after are computed
    labelled: int  # cases per seed
    test: int  # cases
    seeds: tuple[int, ...]
    device: str

    @classmethod
    def read(cls, folder: Path) -> Protocol:
        """The protocol of the runs in a folder."""
        content = json.loads((folder / "protocol.json").read_text())
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})

    def to_json(self) -> str:
        """For protocol.json."""
        return json.dumps(asdict(self), indent=2)

    @property
    def description(self) -> dict[str, Any]:
        """dataset.json of the data."""
        return json.loads((Path(self.data) / "dataset.json").read_text())

    @property
    def cases(self) -> list[str]:
        """All cases with a label, in an order that is always the same; the first `test` of them are for testing."""
        ending = self.description["file_ending"]
        cases = sorted(p.name.removesuffix(ending) for p in (Path(self.data) / "labelsTr").glob(f"*{ending}"))
        random.Random(0).shuffle(cases)
        return cases

    def few(self, seed: int) -> list[str]:
        """The labelled cases of a seed."""
        return random.Random(seed).sample(self.cases[self.test :], self.labelled)


def environment(folder: Path, run: str) -> dict[str, str]:
    """Variables of a process that works on `run`; everything happens in that process, workers would need cores."""
    return {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "runs" / run),
        "nnUNet_n_proc_DA": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }


def write_dataset(protocol: Protocol, raw: Path, number: int, name: str, cases: list[str], labelled: bool) -> str:
    """Register cases by reference, with or without their labels."""
    description, source = protocol.description, Path(protocol.data)
    ending = description["file_ending"]
    entries = {}
    for case in sorted(cases):
        entries[case] = {"images": [str(source / "imagesTr" / f"{case}_0000{ending}")]}
        if labelled:
            entries[case]["label"] = str(source / "labelsTr" / f"{case}{ending}")
    folder = raw / f"Dataset{number:03d}_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    labels = description["labels"] if labelled else {"background": 0}
    content = {**description, "labels": labels, "numTraining": len(cases), "dataset": entries}
    (folder / "dataset.json").write_text(json.dumps(content, indent=2))
    return folder.name


def prepare(protocol: Protocol, folder: Path, backbone: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both data sets planned and preprocessed: plans of the images without labels, and of the few with.

    The few of all seeds form one data set, each seed's own ones a fold of it.
    """
    from nnunet_ssl.cli.pretrain import BACKBONES
    from nnunet_ssl.planners.prepare import prepare_corpus

    few = {seed: sorted(protocol.few(seed)) for seed in protocol.seeds}
    pool = write_dataset(protocol, folder / "raw", POOL, "Pool", protocol.cases, labelled=False)
    union = sorted({case for cases in few.values() for case in cases})
    labelled = write_dataset(protocol, folder / "raw", FEW, "Few", union, labelled=True)
    plans = [
        prepare_corpus([name], BACKBONES[backbone], patch_size=protocol.patch_size, num_processes=1)[0]
        for name in (pool, labelled)
    ]
    # nnU-Net wants to watch something; nothing is chosen by it.
    splits = [{"train": cases, "val": cases} for cases in few.values()]
    (folder / "preprocessed" / labelled / "splits_final.json").write_text(json.dumps(splits))
    return plans[0], plans[1]


def make_trainer(cls: Any, plans: dict[str, Any], fold: int | str, block: str, settings: dict[str, Any], device: str):
    """A trainer with other settings than the plans', in an empty folder."""
    import torch
    from nnunetv2.paths import nnUNet_preprocessed

    configuration = plans["configurations"][CONFIGURATION]
    configuration[block] = {**configuration.get(block, {}), **settings}
    description = json.loads((Path(str(nnUNet_preprocessed)) / plans["dataset_name"] / "dataset.json").read_text())
    plans = {**plans, "continue_training": False}
    trainer = cls(plans, CONFIGURATION, fold, description, torch.device(device))
    shutil.rmtree(trainer.output_folder, ignore_errors=True)  # what a killed run left
    Path(trainer.output_folder).mkdir(parents=True)
    return trainer


def watch(trainer: Any) -> dict[str, float]:
    """Loss, loss of the trivial solution and named terms, means over the validation batches."""
    import torch

    from nnunet_ssl.trainers.data import VALIDATION
    from nnunet_ssl.trainers.loading import build_loader
    from nnunet_ssl.trainers.stepping import run_batch

    number = trainer.num_val_iterations_per_epoch
    batches = build_loader(trainer, trainer.do_split()[1], VALIDATION, range(number))
    seen: list[dict[str, Any]] = []
    hook = trainer.method.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    trainer.network.eval()
    rows = []
    with torch.no_grad():
        for step, batch in enumerate(islice(batches, number)):
            output = run_batch(trainer, batch, VALIDATION, step)
            terms = {name: value.item() for name, value in output.terms.items()}
            rows.append({"loss": output.loss.item(), "trivial": float(trainer.method.yardstick(seen.pop())), **terms})
    hook.remove()
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def pretrain(protocol: Protocol, plans: dict[str, Any], method: str) -> dict[str, Any]:
    """Pre-train once and say what the losses were before and after; the checkpoint stays."""
    from nnunet_ssl.trainers.launch import trainer_class

    settings = {
        "num_epochs": protocol.pretrain_epochs,
        "num_iterations_per_epoch": protocol.iterations_per_epoch,
        "num_val_iterations_per_epoch": protocol.val_iterations,
        "seed": protocol.seeds[0],
    }
    trainer = make_trainer(trainer_class(method), plans, "all", "ssl", settings, protocol.device)
    trainer.initialize()
    start = watch(trainer)
    clock = time.perf_counter()
    trainer.run_training()
    seconds = time.perf_counter() - clock
    end = watch(trainer)
    assert abs(end["trivial"] - start["trivial"]) < 1e-5, "the validation batches changed during the training"
    return {
        "checkpoint": str(Path(trainer.output_folder) / "checkpoint_final.pth"),
        "batch_size": trainer.total_batch_size,
        "seconds": seconds,
        "start": start,
        "end": end,
    }


def finetune(protocol: Protocol, plans: dict[str, Any], seed: int, checkpoint: str | None) -> dict[str, Any]:
    """Train on the few cases of a seed, from a checkpoint or from random weights; Dice per structure and test case."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_ssl.integration.pretrained_weights import load_into
    from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer, SSLScratchTrainer

    settings = {
        "num_epochs": protocol.finetune_epochs,
        "num_iterations_per_epoch": protocol.iterations_per_epoch,
        "num_val_iterations_per_epoch": 1,
        "seed": seed,
    }
    cls = SSLFinetuneTrainer if checkpoint else SSLScratchTrainer
    trainer = make_trainer(cls, plans, protocol.seeds.index(seed), "finetune", settings, protocol.device)
    trainer.initialize()
    if checkpoint:
        load_into(trainer.network, checkpoint)
    clock = time.perf_counter()
    trainer.run_training()
    seconds = time.perf_counter() - clock
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(protocol.device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (trainer.fold,), "checkpoint_final.pth")
    dice = test_dice(protocol, predictor)
    shutil.rmtree(trainer.output_folder)
    return {"seconds": seconds, "dice": dice}


def test_dice(protocol: Protocol, predictor: Any) -> dict[str, list[float]]:
    """Dice per structure and test case, and the mean over the structures."""
    from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn

    source, description = Path(protocol.data), protocol.description
    reader, ending = predictor.plans_manager.image_reader_writer_class(), description["file_ending"]
    structures = {name: value for name, value in description["labels"].items() if value > 0}
    scores: dict[str, list[float]] = {name: [] for name in structures}
    for case in protocol.cases[: protocol.test]:
        image, properties = reader.read_images([str(source / "imagesTr" / f"{case}_0000{ending}")])
        truth = reader.read_seg(str(source / "labelsTr" / f"{case}{ending}"))[0][0]
        found = predictor.predict_single_npy_array(image, properties, None, None, False)
        for name, value in structures.items():
            tp, fp, fn, _ = compute_tp_fp_fn_tn(truth == value, found == value)
            scores[name].append(float(2 * tp / (2 * tp + fp + fn)))
    return {**scores, "mean": [fmean(values) for values in zip(*scores.values(), strict=True)]}


def main(folder: Path, method: str, backbone: str) -> None:
    """Do what is missing of a method on a backbone; each result is written as soon as it is there."""
    protocol = Protocol.read(folder)
    pool, few = prepare(protocol, folder, backbone)
    results = folder / "results" / backbone / method
    results.mkdir(parents=True, exist_ok=True)

    def write(name: str, result: dict[str, Any]) -> None:
        partial = results / f"{name}.partial"
        partial.write_text(json.dumps(result, indent=2))
        os.replace(partial, results / f"{name}.json")

    checkpoint = None
    if method != SCRATCH:
        if not (results / "pretraining.json").is_file():
            write("pretraining", pretrain(protocol, pool, method))
        checkpoint = json.loads((results / "pretraining.json").read_text())["checkpoint"]
    for seed in protocol.seeds:
        if not (results / f"seed_{seed}.json").is_file():
            write(f"seed_{seed}", finetune(protocol, few, seed, checkpoint))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
