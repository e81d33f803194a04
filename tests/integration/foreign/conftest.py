"""A tiny data set that was planned and preprocessed, and results folders to be filled with files made to harm."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.integration.architecture import build_network

PLANS = "nnUNetSSLResEncTinyPlans"


@dataclass(frozen=True)
class Place:
    """A data set that was planned and preprocessed, and the network of its plans."""

    folders: dict[str, str]
    plans: dict[str, Any]

    @property
    def results(self) -> Path:
        return Path(self.folders["nnUNet_results"]) / "Dataset930_Tiny"

    @property
    def raw(self) -> Path:
        return Path(self.folders["nnUNet_raw"]) / "Dataset930_Tiny"

    @property
    def plans_file(self) -> Path:
        return Path(self.folders["nnUNet_preprocessed"]) / "Dataset930_Tiny" / f"{PLANS}.json"

    def model(self, trainer: str) -> Path:
        """A model folder as nnU-Net makes it, without checkpoints."""
        folder = self.results / f"{trainer}__{PLANS}__3d_fullres"
        (folder / "fold_0").mkdir(parents=True)
        shutil.copy(self.plans_file.parent / "dataset.json", folder)
        (folder / "plans.json").write_text(json.dumps(self.plans))
        return folder

    def checkpoint(self, trainer: str) -> dict[str, Any]:
        """What nnU-Net's trainers save, as far as JSON can hold it."""
        manager = PlansManager(json.loads(json.dumps(self.plans)))
        network = build_network(manager.get_configuration("3d_fullres"), 1, 2, True)
        group = {"lr": 0.1, "initial_lr": 0.1, "params": list(range(len(list(network.parameters()))))}
        return {
            "network_weights": network.state_dict(),
            "ssl": {"method": "mae", "backbone": "unet", "patch_size": [16, 16, 16], "num_input_channels": 1},
            "trainer_name": trainer,
            "current_epoch": 1,
            "optimizer_state": {"param_groups": [group], "state": {}},
            "init_args": {"configuration": "3d_fullres", "fold": 0},
            "inference_allowed_mirroring_axes": [0, 1, 2],
            "logging": {},
            "_best_ema": 0.5,
            "grad_scaler_state": None,
        }

    def train(self, trainer: str, *more: str | Path) -> list[str | Path]:
        """nnU-Net's command that trains fold 0."""
        return ["nnUNetv2_train", "930", "3d_fullres", "0", "-tr", trainer, "-p", PLANS, "-device", "cpu", *more]

    def predict(self, work: Path, trainer: str, *folds: str) -> list[str | Path]:
        """nnU-Net's command that segments one image into the folder "out" in `work`."""
        images = work / "images"
        images.mkdir()
        shutil.copy(self.raw / "imagesTr" / "tiny_00_0000.nii.gz", images)
        where = ["-d", "930", "-c", "3d_fullres", "-f", *(folds or "0"), "-tr", trainer, "-p", PLANS, "-device", "cpu"]
        options = [*where, "--disable_tta", "-npp", "1", "-nps", "1"]
        return ["nnUNetv2_predict", "-i", images, "-o", work / "out", *options]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, run_command, tiny_dataset) -> Place:
    """Planned and preprocessed once; tests copy it."""
    folder = tmp_path_factory.mktemp("prepared")
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for path in folders.values():
        Path(path).mkdir()
    tiny_dataset(folders["nnUNet_raw"], 930, num_cases=5)
    options = ["-d", "930", "-pl", "SSLPlannerResEncTiny", "-c", "3d_fullres", "-npfp", "1", "-np", "1"]
    run_command(["nnUNetv2_plan_and_preprocess", *options], folders)
    file = Path(folders["nnUNet_preprocessed"]) / "Dataset930_Tiny" / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    short = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    plans["configurations"]["3d_fullres"]["finetune"] = short
    file.write_text(json.dumps(plans))
    return Place(folders, plans)


@pytest.fixture
def place(prepared: Place, tmp_path: Path) -> Place:
    """The prepared data set with results and plans of its own."""
    folders = {name: str(tmp_path / Path(path).name) for name, path in prepared.folders.items()}
    for name, path in prepared.folders.items():
        shutil.copytree(path, folders[name])
    more = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    return Place({**folders, **more}, json.loads(json.dumps(prepared.plans)))
