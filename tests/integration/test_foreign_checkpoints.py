"""nnssl's checkpoints through the commands a user types, each in a fresh process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures"
PATCH = [64, 32, 32]  # five halvings leave more than one position to normalise over
NETWORKS = {
    "SparkMAETrainer": (
        "SSLPlannerResEncTiny",
        {
            "n_stages": 6,
            "features_per_stage": [8, 16, 16, 16, 32, 32],
            "kernel_sizes": [[3] * 3] * 6,
            "strides": [[1] * 3] + [[2] * 3] * 5,
            "n_blocks_per_stage": [1] * 6,
            "n_conv_per_stage_decoder": [1] * 5,
        },
    ),
    "BaseEvaMAETrainer": (
        "SSLPlannerPrimusTiny",
        {"embed_dim": 72, "eva_depth": 2, "eva_numheads": 1, "patch_embed_size": [8] * 3, "input_shape": PATCH},
    ),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"nnssl checkpoints are not in {FIXTURES}"),
]


@pytest.mark.parametrize("source", NETWORKS)
def test_plan_finetune_predict(source, nnunet_folders, run_command, tiny_dataset, tmp_path):
    """One U-Net (whose trained values lie under aliases) and one Primus (whose tokens are in another order)."""
    folders = {**nnunet_folders, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    dataset = tiny_dataset(folders["nnUNet_raw"], 906, num_cases=6)
    planner, arguments = NETWORKS[source]
    plans = planner.replace("SSLPlanner", "nnUNetSSL") + "Plans"
    options = ["-d", "906", "-pl", planner, "-c", "3d_fullres", "-npfp", "1", "-np", "1"]
    run_command(["nnUNetv2_plan_and_preprocess", *options], folders)
    file = Path(folders["nnUNet_preprocessed"]) / dataset.name / f"{plans}.json"
    content = json.loads(file.read_text())
    configuration = content["configurations"]["3d_fullres"]
    configuration["patch_size"] = PATCH
    configuration["architecture"]["arch_kwargs"].update(arguments)
    configuration["finetune"] = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    file.write_text(json.dumps(content))
    weights = tmp_path / "from_a_neighbour.pth"
    shutil.copy(FIXTURES / source / "checkpoint_tiny.pth", weights)
    model = ["-tr", "SSLFinetuneTrainer", "-p", plans]
    train = ["nnUNetv2_train", "906", "3d_fullres", "0", *model, "-pretrained_weights", weights, "-device", "cpu"]
    assert "100.0% of the encoder's parameters come from the checkpoint." in run_command(train, folders).stdout
    weights.unlink()
    images, output = tmp_path / "images", tmp_path / "segmentations"
    images.mkdir()
    shutil.copy(dataset / "imagesTr" / "tiny_00_0000.nii.gz", images)
    where = ["-d", "906", "-c", "3d_fullres", "-f", "0", "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1"]
    run_command(["nnUNetv2_predict", "-i", images, "-o", output, *model, *where], folders)
    assert (output / "tiny_00.nii.gz").is_file()
