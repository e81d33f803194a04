"""What `learn.py` does apart from pre-training: prepare the data sets, and compare on few labelled cases.

few_labels.py FOLDER BACKBONE ...                           # plan and preprocess
few_labels.py FOLDER BACKBONE NAME=CHECKPOINT ...           # nnUNetv2_pretrain_compare of these with training from scratch
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nnunet_ssl.files.atomic import write_json

CONFIGURATION = "3d_fullres"
POOL, FEW = 601, 610  # data set ids: all images without labels, and all with


@dataclass(frozen=True)
class Protocol:
    """Everything the results depend on."""

    data: str  # nnU-Net raw data set with imagesTr and labelsTr
    epochs: int  # of pre-training
    finetune_epochs: int
    labelled: int  # training cases, others for every seed
    test: int  # cases
    seeds: int  # of cases and fine-tuning: 0, 1, ...
    device: str

    @classmethod
    def read(cls, folder: Path) -> Protocol:
        """The protocol of the runs in a folder."""
        return cls(**json.loads((folder / "protocol.json").read_text()))

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


def prepare(protocol: Protocol, folder: Path, backbone: str) -> str:
    """Both data sets planned and preprocessed: all images without labels, and all with; the name of the plans of the latter.

    Of the labelled ones one fold is made, whose test cases are the protocol's.
    """
    from nnunet_ssl.cli.pretrain_flags import BACKBONES
    from nnunet_ssl.planners.prepare import prepare_corpus

    write_dataset(protocol, folder / "raw", POOL, "Pool", protocol.cases, labelled=False)
    labelled = write_dataset(protocol, folder / "raw", FEW, "Few", protocol.cases, labelled=True)
    fold = {"train": sorted(protocol.cases[protocol.test :]), "val": sorted(protocol.cases[: protocol.test])}
    write_json([fold], folder / "raw" / labelled / "splits_final.json")
    pool = prepare_corpus([POOL], BACKBONES[backbone], num_processes=1)[0]
    patch = pool["configurations"][CONFIGURATION]["patch_size"]
    return prepare_corpus([FEW], BACKBONES[backbone], patch_size=patch, num_processes=1)[1]


def comparison(folder: Path, backbone: str) -> Path:
    """The folder of a backbone's comparison."""
    return folder / "comparisons" / backbone


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


def main(folder: Path, backbone: str, checkpoints: list[str]) -> None:
    """Compare the checkpoints, each NAME=FILE, with training from scratch; goes on where it stopped."""
    from nnunet_ssl.cli.compare import main as compare

    protocol = Protocol.read(folder)
    plans = prepare(protocol, folder, backbone)
    typed = [str(FEW), "-p", plans, "--labelled", str(protocol.labelled), "--seeds", str(protocol.seeds)]
    typed += ["--epochs", str(protocol.finetune_epochs), "--metrics", "Dice", "--keep", "scores"]
    typed += ["-device", protocol.device, "-np", "1", "-o", str(comparison(folder, backbone))]
    compare([*typed, "-pretrained_weights", *checkpoints])


if __name__ == "__main__":
    if "=" in sys.argv[-1]:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    else:
        for wanted in sys.argv[2:]:
            prepare(Protocol.read(Path(sys.argv[1])), Path(sys.argv[1]), wanted)
