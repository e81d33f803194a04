"""What `learn.py` does apart from pre-training: prepare the data sets; fine-tune on few labels and test on other cases.

    few_labels.py FOLDER BACKBONE ...                           # plan and preprocess
    few_labels.py FOLDER BACKBONE METHOD PRETRAINING SEED       # one fine-tuning; METHOD "scratch" trains from random weights

Trainers and predictor are those behind nnUNetv2_train and nnUNetv2_predict, called directly: the seed is a setting of the plans,
and a start of each command would cost more than its work here.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

from nnunet_ssl.files.atomic import write_json

CONFIGURATION = "3d_fullres"
POOL, FEW = 601, 610  # data set ids: all images without labels, the few with
SCRATCH = "scratch"  # takes the place of a method: training from random weights


@dataclass(frozen=True)
class Protocol:
    """Everything the results depend on."""

    data: str  # nnU-Net raw data set with imagesTr and labelsTr
    epochs: int  # of pre-training
    finetune_epochs: int
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


def pretrained(folder: Path, backbone: str, method: str, number: int) -> Path:
    """Where nnUNetv2_pretrain leaves a pre-trained network."""
    plans = f"nnUNet{import_module('nnunet_ssl.cli.pretrain_flags').BACKBONES[backbone].replace('Planner', '')}Plans"
    trainer = import_module("nnunet_ssl.trainers.pretraining").trainer_class(method).__name__
    run = folder / "runs" / backbone / method / str(number) / f"Dataset{POOL}_Pool"
    return run / f"{trainer}__{plans}__{CONFIGURATION}" / "fold_all" / "checkpoint_final.pth"


def environment(folder: Path, run: str, threads: int | None = None) -> dict[str, str]:
    """Variables of a process that works on `run`; everything happens in that process, workers would need cores."""
    return {
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
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
    write_json(content, folder / "dataset.json")
    return folder.name


def prepare(protocol: Protocol, folder: Path, backbone: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both data sets planned and preprocessed: plans of the images without labels, and of the few with.

    The few of all seeds form one data set, each seed's own ones a fold of it.
    """
    from nnunet_ssl.cli.pretrain_flags import BACKBONES
    from nnunet_ssl.planners.prepare import prepare_corpus

    few = {seed: sorted(protocol.few(seed)) for seed in protocol.seeds}
    write_dataset(protocol, folder / "raw", POOL, "Pool", protocol.cases, labelled=False)
    union = sorted({case for cases in few.values() for case in cases})
    labelled = write_dataset(protocol, folder / "raw", FEW, "Few", union, labelled=True)
    pool = prepare_corpus([POOL], BACKBONES[backbone], num_processes=1)[0]
    patch = pool["configurations"][CONFIGURATION]["patch_size"]
    plans = prepare_corpus([FEW], BACKBONES[backbone], patch_size=patch, num_processes=1)[0]
    # nnU-Net wants to watch something; nothing is chosen by it.
    splits = [{"train": cases, "val": cases} for cases in few.values()]
    write_json(splits, folder / "preprocessed" / labelled / "splits_final.json")
    return pool, plans


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


def finetune(protocol: Protocol, plans: dict[str, Any], seed: int, checkpoint: str | None) -> dict[str, Any]:
    """Train on the few cases of a seed, from a checkpoint or from random weights; Dice per structure and test case."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_ssl.integration.pretrained_weights import load_into
    from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer, SSLScratchTrainer

    settings = {
        "num_epochs": protocol.finetune_epochs,
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


def main(folder: Path, backbone: str, method: str, number: int, seed: int) -> None:
    """Fine-tune and test; the result is written when all of it is there."""
    protocol = Protocol.read(folder)
    _, few = prepare(protocol, folder, backbone)
    checkpoint = None if method == SCRATCH else str(pretrained(folder, backbone, method, number))
    results = folder / "results" / backbone / method
    results.mkdir(parents=True, exist_ok=True)
    write_json(finetune(protocol, few, seed, checkpoint), results / f"{number}_seed_{seed}.json")


if __name__ == "__main__":
    if len(sys.argv) == 6 and sys.argv[4].isdigit():
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        for wanted in sys.argv[2:]:
            prepare(Protocol.read(Path(sys.argv[1])), Path(sys.argv[1]), wanted)
