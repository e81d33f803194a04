"""A foreign checkpoint, the commands the planning prints, and a prediction when the checkpoint is gone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus

pytestmark = pytest.mark.slow

PRIMUS = {
    "embed_dim": 36,
    "patch_embed_size": [8, 8, 8],
    "eva_depth": 1,
    "eva_numheads": 2,
    "init_values": 0.1,
    "scale_attn_inner": True,
}


def foreign_checkpoint(path: Path) -> None:
    """A small ViT of nnFoundation, in the form nnssl writes: images not resampled, tokens dropped in its pre-training alone."""
    network = Primus(1, num_classes=1, input_shape=(32, 32, 32), **PRIMUS)
    pretraining = {"spacing": None, "patch_size": [32, 32, 32], "normalization_schemes": ["ZScoreNormalization"]}
    theirs = {f"encoder_{key}" if key.startswith("eva_") else key: value for key, value in PRIMUS.items()}
    theirs |= {"decoder_eva_depth": 1, "decoder_eva_numheads": 2, "patch_drop_rate": 0.8, "drop_path_rate": 0.2}
    theirs |= {"input_channels": 1, "output_channels": 1, "input_shape": [32, 32, 32], "attn_drop_rate": 0.0}
    plan = {
        "architecture_plans": {
            "arch_class_name": "PrimusX",
            "arch_kwargs": theirs,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {"dataset_name": "Dataset001_Elsewhere", "configurations": {"noresample": pretraining}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [16, 16, 16],
        "key_to_encoder": "eva",
        "key_to_stem": "down_projection",
        "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed",
    }
    torch.save({"network_weights": network.state_dict(), "nnssl_adaptation_plan": plan}, path)


def command(text: str, start: str) -> list[str]:
    """The first command in a program's output that begins so."""
    found = re.search(rf"^  ({start}.*)$", text, re.MULTILINE)
    assert found, text
    return shlex.split(found[1])


def test_without_resampling_from_plan_to_prediction(nnunet_folders, run_command, tiny_dataset, tmp_path):
    """--adapt no_resample, which crashes in other programs, with images of unlike spacings; two channels; resumed."""
    import SimpleITK as sitk

    folders = {**nnunet_folders, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    dataset = tiny_dataset(folders["nnUNet_raw"], 908, num_cases=5, channels=2)
    for number, file in enumerate([*dataset.glob("*Tr/tiny_00*"), *dataset.glob("*Tr/tiny_01*")]):
        image = sitk.ReadImage(str(file))
        image.SetSpacing((1.0, 1.5, 2.0 + ("_01" in file.name)))
        sitk.WriteImage(image, str(file))
        assert number < 6
    checkpoint = tmp_path / "weights of a neighbour.pth"
    foreign_checkpoint(checkpoint)
    planning = ["nnUNetv2_plan_finetune", "-d", "908", "-pretrained_weights", checkpoint, "--adapt", "no_resample"]
    planning += ["--epochs", "1", "-np", "1"]
    planned = run_command(planning, folders).stdout
    assert "patch_drop_rate 0.8 (hides tokens, in pre-training alone)" in planned
    (file,) = (Path(folders["nnUNet_preprocessed"]) / dataset.name).glob("nnUNetFinetunePlans*.json")
    plans = json.loads(file.read_text())
    settings = plans["configurations"]["3d_fullres"]
    assert "patch_drop_rate" not in settings["architecture"]["arch_kwargs"]
    settings["finetune"].update(num_iterations_per_epoch=1, num_val_iterations_per_epoch=1)
    file.write_text(json.dumps(plans))
    folder = file.parent / settings["data_identifier"]
    assert len(list(folder.glob("*.pkl"))) == 5
    assert len(list((file.parent / "gt_segmentations").iterdir())) == 5

    train = command(planned, "nnUNetv2_train")
    assert train[-1] == str(checkpoint)
    trained = run_command([*train, "-device", "cpu"], folders).stdout
    assert "1 -> 2 channels by repeat" in trained
    assert "Mean Validation Dice" in trained
    (model,) = (Path(folders["nnUNet_results"]) / dataset.name).iterdir()
    assert model.name == f"SSLFinetuneTrainer__{file.stem}__3d_fullres"

    checkpoint.unlink()
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for image in (dataset / "imagesTr").glob("tiny_00_*"):
        shutil.copy(image, images)
    places = {"INPUT_FOLDER": str(images), "OUTPUT_FOLDER": str(output)}
    predict = [places.get(word, word) for word in command(planned, "nnUNetv2_predict")]
    predict = predict[: predict.index("-f")] + ["-f", "0"]
    run_command([*predict, "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1"], folders)
    image = sitk.ReadImage(str(images / "tiny_00_0000.nii.gz"))
    segmentation = sitk.ReadImage(str(output / "tiny_00.nii.gz"))
    assert segmentation.GetSize() == image.GetSize()
    assert segmentation.GetSpacing() == pytest.approx((1.0, 1.5, 2.0))
