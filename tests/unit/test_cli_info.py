"""What nnUNetv2_pretrain_info says about files of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssl.checkpoints.description.describe import describe
from nnunet_ssl.checkpoints.description.description import Description
from nnunet_ssl.checkpoints.networks.spec import checked_spec
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.cli.info import main

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures"
KEYS = {
    *("path", "size_bytes", "sha256", "format", "repo_id", "revision", "trainer", "method", "backbone", "network"),
    *("network_source", "architecture", "parameters", "tensors", "dtypes", "non_finite_tensors", "input_channels"),
    *("channel_names", "patch_size", "recommended_patch_size", "spacing", "resampled", "normalization"),
    *("transpose_forward", "image_reader", "token_order", "dataset", "further_datasets", "num_images", "epochs_done"),
    *("epochs_planned", "versions", "licence", "citations", "notes", "problem", "uses", "weights", "teacher", "stems"),
}
PRIMUS = {"embed_dim": 36, "patch_embed_size": [8, 8, 8], "eva_depth": 1, "eva_numheads": 2, "scale_attn_inner": True}

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"nnssl checkpoints are not in {FIXTURES}")


def primus_weights() -> dict[str, torch.Tensor]:
    network = checked_spec("Primus", PRIMUS, "a test").build_empty(1, 2, (16, 16, 16))
    return {name: torch.ones(tensor.shape) for name, tensor in network.state_dict().items()}


def ours() -> dict[str, Any]:
    """As our pre-training saves it, as far as a description looks."""
    architecture = checked_spec("Primus", PRIMUS, "a test").architecture([16, 16, 16])
    settings = {
        "patch_size": [16, 16, 16],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "architecture": architecture,
    }
    plans = {"dataset_name": "Dataset004_Hippocampus", "configurations": {"3d_fullres": settings}}
    dataset_json = {"channel_names": {"0": "MRI"}, "numTraining": 180}
    return {
        "network_weights": primus_weights(),
        "ssl": {
            "method": "mae",
            "backbone": "primus",
            "token_order": "natural",
            "num_input_channels": 1,
            "patch_size": [16, 16, 16],
            "dataset": "Dataset004_Hippocampus",
            "datasets": ["Dataset004_Hippocampus", "Dataset745_More"],
            "recipe": {"num_epochs": 50},
            "versions": {"nnunet_ssl": "1.2.3"},
            "citations": ["He et al. 2022"],
            "licence": "CC-BY-4.0",
        },
        "optimizer_state": {"state": {}},
        "current_epoch": 20,
        "init_args": {"plans": plans, "configuration": "3d_fullres", "dataset_json": dataset_json},
        "trainer_name": "SSLMAETrainer",
    }


def description_of(checkpoint: dict[str, Any], folder: Path, name: str = "weights.pth") -> Description:
    path = folder / name
    torch.save(checkpoint, path)
    return describe(read_checkpoint(path), path)


def test_ours(tmp_path: Path) -> None:
    found = description_of(ours(), tmp_path)
    assert found.format == "nnunet_ssl, pre-training checkpoint (can be continued)"
    assert (found.method, found.backbone, found.token_order) == ("mae", "primus", "natural (A0, A1, A2)")
    assert (found.epochs_done, found.epochs_planned) == (20, 50)
    assert (found.dataset, found.further_datasets, found.num_images) == (
        "Dataset004_Hippocampus",
        ["Dataset745_More"],
        180,
    )
    assert (found.licence, found.citations, found.versions) == (
        "CC-BY-4.0",
        ["He et al. 2022"],
        {"nnunet_ssl": "1.2.3"},
    )
    assert (found.spacing, found.resampled, found.channel_names) == ([1, 1, 1], True, ["MRI"])
    assert found.problem is None
    assert found.uses[0] == ("Fine-tune it", f"nnUNetv2_finetune DATASET -pretrained_weights {found.path}")


@needs_fixtures
@pytest.mark.parametrize("file", sorted(FIXTURES.glob("*/checkpoint_tiny.pth")), ids=lambda f: f.parent.name)
def test_files_of_nnssl(file: Path) -> None:
    found = describe(read_checkpoint(file), file)
    shapes = json.loads((file.parent / "tiny_arch.json").read_text())["shapes"]
    assert found.trainer == file.parent.name
    assert found.format.startswith("nnssl, ")
    assert found.problem is None
    assert found.non_finite_tensors == []
    assert found.dtypes == {"float32": found.tensors}
    spark, eva = file.parent.name == "SparkMAETrainer", "Eva" in file.parent.name
    assert found.patch_size == (None if spark else [64, 64, 64])
    assert found.spacing == (None if spark else [1, 1, 1])
    assert found.parameters["stem"] == (36_936 if eva else 240)
    assert found.parameters["encoder"] == (127_824 if eva else 139_696)
    swapped = found.token_order is not None and found.token_order.startswith("swapped")
    assert swapped == (eva and "SimMIM" not in file.parent.name)
    assert any("SparK" in note for note in found.notes) == spark
    encoder_only = not any(key.startswith(("decoder.stages", "up_projection")) for key in shapes) and not spark
    assert any(note.startswith("Encoder only") for note in found.notes) == encoder_only
    assert ("not stated in the file" in found.table()) is True


@pytest.mark.parametrize(
    ("prefix", "note"),
    [
        ("module.", 'Names begin with "module."'),
        ("_orig_mod.", 'Names hold "_orig_mod."'),
        ("encoder.", 'The network lies under "encoder."'),
    ],
)
def test_peculiar_names(prefix: str, note: str, tmp_path: Path) -> None:
    weights = {prefix + name: tensor for name, tensor in primus_weights().items() if "up_projection" not in name}
    plan = {"architecture_plans": {"arch_class_name": "Primus", "arch_kwargs": PRIMUS}}
    found = description_of({"state_dict": weights, "nnssl_adaptation_plan": plan}, tmp_path)
    assert any(n.startswith(note) for n in found.notes)
    assert any(n.startswith("Encoder only") for n in found.notes)
    assert found.problem is None
    assert set(found.parameters) == {"stem", "encoder", "position embedding", "decoder"}  # DNA's mask_token


def test_a_state_dict_of_another_program(tmp_path: Path) -> None:
    found = description_of({"swinViT.patch_embed.proj.weight": torch.zeros(2, 1, 2, 2, 2)}, tmp_path)
    assert found.format == "bare state dict"
    assert found.network is None
    assert found.parameters == {"unknown": 16}
    assert "no network that nnU-Net builds" in str(found.problem)
    assert found.uses == []
    assert "It cannot be fine-tuned from" in found.table()


def test_weights_that_diverged(tmp_path: Path) -> None:
    checkpoint = ours()
    checkpoint["network_weights"]["eva.norm.weight"][3] = float("inf")
    found = description_of(checkpoint, tmp_path)
    assert found.non_finite_tensors == ["eva.norm.weight"]
    assert "diverged" in str(found.problem)
    assert found.uses == []


def test_hostile_descriptions_are_described_not_believed(tmp_path: Path) -> None:
    checkpoint = ours()
    checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "os.system"
    found = description_of(checkpoint, tmp_path)
    assert "never imported" in str(found.problem)
    checkpoint = {**ours(), "ssl": [1], "init_args": "x", "current_epoch": "many", "citations": {"a": 1}}
    found = description_of(checkpoint, tmp_path)
    assert (found.epochs_done, found.citations, found.dataset) == (None, [], None)
    json.dumps(found.to_json())


def test_a_model_folder_of_nnunet(tmp_path: Path) -> None:
    fold = tmp_path / "nnUNetTrainer__plans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold.parent / "plans.json").write_text("{}")
    checkpoint = {k: v for k, v in ours().items() if k != "ssl"} | {"trainer_name": "nnUNetTrainer"}
    found = description_of(checkpoint, fold, "checkpoint_best.pth")
    assert found.format == "nnU-Net"
    assert found.uses[0] == (
        "Predict with it",
        f"nnUNetv2_predict_from_modelfolder -i INPUT -o OUTPUT -m {fold.parent} -f 0 -chk checkpoint_best.pth",
    )


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file(primus_weights(), path)
    found = describe(read_checkpoint(path), path)
    assert found.format == "bare state dict, in a .safetensors file"
    assert "attention heads" in str(found.problem)  # a width of 36 does not tell them


def test_json_has_every_key_for_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my weights.pth"
    for checkpoint in (ours(), {"x": torch.zeros(1)}):
        torch.save(checkpoint, path)
        main([str(path), "--json"])
        assert set(json.loads(capsys.readouterr().out)) == KEYS
    torch.save(ours(), path)
    main([str(path)])
    said = capsys.readouterr().out
    assert f"-pretrained_weights '{path}'" in said
    assert "SHA-256" in said
    assert "epochs" in said
    assert "20 done of 50" in said


def test_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        main([str(path)])
    assert stopped.value.code == 1
    assert "is empty" in capsys.readouterr().err
