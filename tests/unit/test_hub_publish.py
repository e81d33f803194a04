"""Publishing an export, by the real client to a stand-in of the hub; its card; the list of known models."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from nnunet_ssl.checkpoints.hub.model_card import write_model_card
from nnunet_ssl.checkpoints.hub.publish import push_to_hub
from nnunet_ssl.checkpoints.hub.resolve import resolve_source
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.cli import models
from nnunet_ssl.errors import CheckpointError, RepositoryNotEmptyError

SSL = {
    "method": "mae",
    "config": {"mask_ratio": 0.75, "mask_block": 16},
    "settings": {"num_epochs": 5, "num_iterations_per_epoch": 250, "batch_size": 8, "seed": 0},
    "recipe": {"optimizer": "sgd", "initial_lr": 0.01},
    "backbone": "unet",
    "num_input_channels": 1,
    "patch_size": [160, 160, 160],
    "spacing": [1.0, 1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"],
    "configuration": "3d_fullres",
    "datasets": ["Dataset745_Brains"],
    "versions": {"nnunet_ssl": "0.1.0"},
    "citations": ["He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022"],
    "licence": "CC-BY-4.0",
}
PRIVATE = {
    "dataset_json": {
        "channel_names": {"0": "T1w"},
        "dataset": {"patient_17": {"images": ["/data/clinic/patient_17.nii"]}},
    },
    "plans": {"dataset_name": "Dataset745_Brains", "started_in": "/home/somebody/nnUNet_results"},
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder as nnUNetv2_pretrain_export leaves it."""
    folder = tmp_path / "export"
    folder.mkdir()
    checkpoint = {
        "network_weights": {"a": torch.ones(4000)},
        "ssl": SSL,
        "current_epoch": 5,
        "trainer_name": "SSLMAETrainer",
    }
    torch.save(checkpoint, folder / "checkpoint_final.pth")
    (folder / "adaptation_plan.json").write_text('{"pretrain_num_input_channels": 1}')
    (folder / "config.json").write_text("{}")
    write_model_card(folder, checkpoint, repo_id="ME/Brains")
    return folder


def test_a_new_repository_is_private_and_gives_back_what_went_in(
    export: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = push_to_hub(export, "ME/Brains", token=hub.token, message="First version")
    assert url == f"{hub.endpoint}/ME/Brains"
    repository = hub.repositories["ME/Brains"]
    assert repository.private
    assert repository.messages == ["First version"]
    names = ["README.md", "adaptation_plan.json", "checkpoint_final.pth", "config.json"]
    assert sorted(repository.files) == [".gitattributes", *names]
    assert {name: (export / name).read_bytes() for name in names}.items() <= repository.files.items()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    found = resolve_source("ME/Brains")
    assert torch.equal(read_checkpoint(found.path)["network_weights"]["a"], torch.ones(4000))


def test_nothing_is_overwritten_unasked(export: Path, hub: Any) -> None:
    push_to_hub(export, "ME/Brains", token=hub.token)
    before = dict(hub.repositories["ME/Brains"].files)
    (export / "config.json").write_text('{"version": 2}')
    with pytest.raises(RepositoryNotEmptyError, match=r"already holds README\.md, adaptation_plan\.json") as error:
        push_to_hub(export, "ME/Brains", token=hub.token)
    assert "checkpoint_final.pth" in error.value.found
    assert hub.repositories["ME/Brains"].files == before
    push_to_hub(export, "ME/Brains", token=hub.token, overwrite=True)
    assert hub.repositories["ME/Brains"].files == {**before, "config.json": b'{"version": 2}'}


def test_somebody_else_uploads_at_the_same_time(export: Path, hub: Any) -> None:
    hub.uploaded_meanwhile = {"theirs.json": b"{}"}
    with pytest.raises(CheckpointError, match="changed during the upload"):
        push_to_hub(export, "ME/Brains", token=hub.token)
    assert sorted(hub.repositories["ME/Brains"].files) == [".gitattributes", "theirs.json"]


def test_public_only_when_asked(export: Path, hub: Any) -> None:
    push_to_hub(export, "ME/Public", token=hub.token, private=False)
    assert not hub.repositories["ME/Public"].private
    hub.add("ME/Open", {".gitattributes": b""})
    with pytest.raises(CheckpointError, match="exists and is public, and a private upload was asked for"):
        push_to_hub(export, "ME/Open", token=hub.token)
    assert list(hub.repositories["ME/Open"].files) == [".gitattributes"]


def test_no_permission(export: Path, hub: Any) -> None:
    for repo_id, token in (("ME/Brains", None), ("ME/Brains", "hf_of_nobody"), ("somebody-else/Brains", hub.token)):
        with pytest.raises(CheckpointError, match=r"Access to .* was refused \(40[13]\). Log in with `hf auth login`"):
            push_to_hub(export, repo_id, token=token)
    assert hub.repositories == {}
    with pytest.raises(CheckpointError, match="Expected ORG/NAME"):
        push_to_hub(export, "Brains", token=hub.token)


def test_what_tells_about_this_machine_is_not_uploaded(export: Path, hub: Any) -> None:
    torch.save({"network_weights": {"a": torch.ones(4)}, "init_args": PRIVATE}, export / "checkpoint_final.pth")
    (export / "plans.json").write_text(json.dumps({"folders": ["C:\\data\\clinic"]}))
    save_file({"a": torch.ones(4)}, export / "model.safetensors", metadata={"made_in": "/home/me/run"})
    (export / "notes.md").write_text("fine\nsee /scratch/me/log.txt")
    with pytest.raises(CheckpointError) as error:
        push_to_hub(export, "ME/Brains", token=hub.token)
    for place in (
        "checkpoint_final.pth: init_args.plans.started_in",
        "checkpoint_final.pth: init_args.dataset_json.dataset",
        "model.safetensors: metadata.made_in",
        "plans.json: 1 entries of folders",
        "notes.md: line 2",
    ):
        assert place in str(error.value)
    assert not hub.requests


@pytest.mark.parametrize("name", ["train.py", "data.pkl", ".env", "image.nii.gz"])
def test_only_exports_are_uploaded(export: Path, hub: Any, name: str) -> None:
    (export / name).write_bytes(b"something")
    with pytest.raises(CheckpointError, match=f"holds what no export has: {name}"):
        push_to_hub(export, "ME/Brains", token=hub.token)
    with pytest.raises(CheckpointError, match="is no folder"):
        push_to_hub(export / name, "ME/Brains", token=hub.token)
    assert not hub.requests


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def test_card_of_a_pretrained_network(export: Path) -> None:
    card = (export / "README.md").read_text()
    assert front_matter(card) == {
        "license": "cc-by-4.0",
        "library_name": "nnunetv2",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["medical-imaging", "radiology", "nnunet", "nnunet_ssl", "mae", "unet", "self-supervised"],
    }
    for part in (
        "# Brains\n",
        "pre-trained without labels by `mae`",
        "| data sets | Dataset745_Brains |",
        "| patch [voxels] | 160, 160, 160 |",
        "| initial lr | 0.01 |",
        '"mask_ratio": 0.75',
        "nnUNetv2_plan_finetune -d DATASET_ID -pretrained_weights ME/Brains",
        "nnUNetv2_train DATASET_ID 3d_fullres 0 -p PLANS -pretrained_weights weights/checkpoint_final.pth",
        "nnUNetv2_preprocess_like_nnssl -d DATASET_ID -n NAME -pc https://huggingface.co/ME/Brains",
        "It is no medical device",
        "- He et al., Masked Autoencoders",
        "- Isensee et al., nnU-Net",
    ):
        assert part in card, part
    assert "## Curves" not in card
    assert "None was stated" not in card


def test_card_with_curves_without_licence_and_without_secrets(export: Path, tmp_path: Path) -> None:
    (tmp_path / "progress.png").write_bytes(b"a picture")
    logging = {"train_losses": [0.9, 0.51234], "val_losses": [float("nan")]}
    checkpoint = {"ssl": {**SSL, "licence": None}, "init_args": PRIVATE, "logging": logging}
    checkpoint["ssl"]["datasets"] = ["Dataset745_Brains", "/data/clinic/Dataset746"]
    with pytest.raises(CheckpointError, match="exists and was left alone"):
        write_model_card(export, checkpoint)
    path = write_model_card(export, checkpoint, progress=tmp_path / "progress.png", overwrite=True)
    card = path.read_text()
    assert (export / "progress.png").read_bytes() == b"a picture"
    assert "![Losses, learning rate and time per epoch](progress.png)" in card
    assert "Loss in the last epoch: training 0.5123." in card
    assert "license" not in front_matter(card)
    assert "None was stated: without one nobody else may use the weights" in card
    assert "| channels | T1w |" in card
    for secret in ("/data", "clinic", "patient_17", "somebody", str(tmp_path), socket.gethostname()):
        assert secret not in card, secret


def test_card_of_a_segmentation_model(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
        (tmp_path / name).write_text("{}")
    dataset_json = {"channel_names": {"0": "T1w"}, "labels": {"background": 0, "tumour": 1}}
    plans = {
        "dataset_name": "Dataset004_X",
        "configurations": {"3d_fullres": {"patch_size": [40, 56, 40], "spacing": [1, 1, 1]}},
    }
    init_args = {"plans": plans, "configuration": "3d_fullres", "dataset_json": dataset_json}
    checkpoint = {
        "trainer_name": "nnUNetTrainer",
        "init_args": init_args,
        "citations": [{"apa_citations": ["Wald et al."]}],
    }
    card = write_model_card(tmp_path, checkpoint, repo_id="ME/Tumours", licence="My-Own 1.0").read_text()
    matter = front_matter(card)
    assert (matter["license"], matter["license_name"]) == ("other", "my-own 1.0")
    assert matter["pipeline_tag"] == "image-segmentation"
    assert "nnUNetv2_predict_from_modelfolder -i IMAGES -o SEGMENTATIONS -m model -f 0" in card
    for part in ("| labels | background, tumour |", "| patch [voxels] | 40, 56, 40 |", "- Wald et al.", "My-Own 1.0."):
        assert part in card, part


def test_card_of_a_network_of_another_program(tmp_path: Path) -> None:
    """Such files state little; nothing is made up for them."""
    checkpoint = {"trainer_name": "BaseMAETrainer", "ssl": {"method": "mae", "backbone": "unet"}, "init_args": None}
    card = write_model_card(tmp_path, checkpoint).read_text()
    assert "| spacing" not in card
    plan = {"dataset_name": "Dataset745_OpenNeuro", "configurations": {"onemmiso": {"spacing": [1, 1, 1]}}}
    planned = {**checkpoint, "nnssl_adaptation_plan": {"pretrain_plan": plan}}
    assert "| spacing [mm] | 1, 1, 1 |" in write_model_card(tmp_path, planned, overwrite=True).read_text()
    assert "It was trained by another program (`BaseMAETrainer`)." in card
    assert "made with nnunet_ssl" not in card
    assert "None" not in card.replace("None was stated", "")


def test_list_of_known_models(capsys: pytest.CaptureFixture[str]) -> None:
    models.main([])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[:3] == ["name", "method", "backbone"]
    assert any(row.startswith("ResEncL-OpenMind-SimCLR") and "192x192x64" in row for row in rows)
    models.main(["--method", "mae", "--backbone", "primus-m", "--json"])
    assert [m["repo_id"] for m in json.loads(capsys.readouterr().out)] == ["AnonRes/PrimusM-OpenMind-MAE"]
    models.main(["primusm-openmind-mae"])
    shown = capsys.readouterr().out
    assert "licence:     cc-by-4.0" in shown
    assert "nnUNetv2_pretrain 745 --backbone primus_m -pretrained_weights PrimusM-OpenMind-MAE" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ResEncL-OpenMind-MEA"], "Did you mean ResEncL-OpenMind-MAE"),
        (["--method", "dino"], "No known model fits"),
        (["--download"], "wants the NAME of a model"),
        (["ResEncL-OpenMind-MAE", "--method", "mae"], "not both"),
    ],
)
def test_mistakes(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.main(arguments)
    error = capsys.readouterr().err
    assert error.startswith("nnUNetv2_pretrain_models: ")
    assert said in error


def test_download_on_a_login_node(hub: Any, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add("AnonRes/ResEncL-OpenMind-S3D", {"checkpoint_final.pth": (export / "checkpoint_final.pth").read_bytes()})
    models.main(["ResEncL-OpenMind-S3D", "--download"])
    path, origin = capsys.readouterr().out.splitlines()
    assert Path(path).is_file()
    assert "licence cc-by-4.0. Please cite: Wald et al." in origin
