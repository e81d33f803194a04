"""Checkpoints from the hub, by the real client from a stand-in of the hub: fetched, cached, refused, checked."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from nnunet_ssl.checkpoints.hub.address import HubAddress, choose_weights, parse_address
from nnunet_ssl.checkpoints.hub.known_models import KNOWN_MODELS
from nnunet_ssl.checkpoints.hub.resolve import resolve_source
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.errors import CheckpointError

MAE = "AnonRes/ResEncL-OpenMind-MAE"


def weights(seed: int = 0) -> bytes:
    """A small checkpoint, large enough to count as a large file."""
    file = io.BytesIO()
    torch.save({"network_weights": {"a": torch.full((4000,), float(seed))}}, file)
    return file.getvalue()


@pytest.fixture
def published(hub: Any) -> Any:
    """The hub with one model as nnssl publishes them, and things in it that nobody should fetch."""
    files = {
        "checkpoint_final.pth": weights(),
        "adaptation_plan.json": b'{"pretrain_num_input_channels": 1}',
        "config.json": b"{}",
        "README.md": b"# A model",
        "modeling.py": b"raise SystemExit('never run')",
        "optimizer.pkl": bytes(2000),
        ".gitattributes": b"",
    }
    hub.add(MAE, files, licence="cc-by-4.0")
    return hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ORG/NAME", HubAddress("ORG/NAME")),
        ("ORG/NAME@v1.0", HubAddress("ORG/NAME", "v1.0")),
        ("hf://ORG/NAME", HubAddress("ORG/NAME")),
        ("hf://models/ORG/NAME/", HubAddress("ORG/NAME")),
        ("hf://ORG/NAME@abc123/a/b.pth", HubAddress("ORG/NAME", "abc123", "a/b.pth")),
        ("hf://ORG/NAME@refs/pr/7/b.pth", HubAddress("ORG/NAME", "refs/pr/7", "b.pth")),
        ("https://huggingface.co/ORG/NAME", HubAddress("ORG/NAME")),
        ("huggingface.co/ORG/NAME/", HubAddress("ORG/NAME")),
        ("https://hf.co/ORG/NAME/tree/v1/sub?x=1", HubAddress("ORG/NAME", "v1", "sub")),
        ("https://huggingface.co/ORG/NAME/tree/refs%2Fpr%2F7", HubAddress("ORG/NAME", "refs/pr/7")),
        ("https://huggingface.co/ORG/NAME/blob/main/a%20b.pth", HubAddress("ORG/NAME", "main", "a b.pth")),
        ("https://huggingface.co/ORG/NAME/resolve/main/a.pth?download=true", HubAddress("ORG/NAME", "main", "a.pth")),
        ("folder/checkpoint_final.pth", None),
        ("a/b/c", None),
        ("../weights", None),
        ("/absolute/path", None),
        ("name", None),
    ],
)
def test_addresses(text: str, expected: HubAddress | None) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "hf://ORG",
        "hf://datasets/ORG/NAME",
        "https://huggingface.co/datasets/ORG/NAME",
        "https://huggingface.co/ORG",
        "https://huggingface.co/ORG/NAME/discussions/1",
        "https://huggingface.co/ORG/NAME/blob",
        "https://example.org/ORG/NAME/a.pth",
    ],
)
def test_what_is_meant_as_an_address_but_is_none(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"Expected|give the path"):
        parse_address(text)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["checkpoint_final.pth", "checkpoint_best.pth", "fold_0/checkpoint_final.pth"], "checkpoint_final.pth"),
        (["fold_all/checkpoint_final.pth", "fold_all/checkpoint_best.pth"], "fold_all/checkpoint_final.pth"),
        (["model.safetensors", "config.json"], "model.safetensors"),
        (["a.py", "deep/er/weights.PT"], "deep/er/weights.PT"),
    ],
)
def test_the_file_a_user_expects(names: list[str], chosen: str) -> None:
    assert choose_weights(names, "there", "{}") == chosen


def test_two_candidates_are_listed_with_what_to_type(hub: Any) -> None:
    hub.add("ORG/TWO", {"ResEnc-L/a.pth": weights(1), "ResEnc-L/b.pth": weights(2), "Primus-M/c.pth": weights(3)})
    with pytest.raises(CheckpointError) as error:
        resolve_source("ORG/TWO")
    assert "hf://ORG/TWO/ResEnc-L/b.pth" in str(error.value)
    assert not hub.asked("/resolve/")
    for text in ("hf://ORG/TWO/Primus-M", f"{hub.endpoint}/ORG/TWO/tree/main/Primus-M", "hf://ORG/TWO/Primus-M/c.pth"):
        assert read_checkpoint(resolve_source(text).path)["network_weights"]["a"][0] == 3
    with pytest.raises(CheckpointError, match=r"holds no file d\.pth. It holds Primus-M/c\.pth, ResEnc-L/a\.pth"):
        resolve_source("hf://ORG/TWO/d.pth")
    hub.add("ORG/NONE", {"weights.bin": weights(), "README.md": b""})
    with pytest.raises(CheckpointError, match=r"holds no \.pth, \.pt, \.safetensors file, only README.md, weights.bin"):
        resolve_source("ORG/NONE")


def test_download_origin_and_cache(published: Any) -> None:
    found = resolve_source("ResEncL-OpenMind-mae")  # the name of a known model, in another case
    assert read_checkpoint(found.path)["network_weights"]["a"].shape == (4000,)
    origin, repository = found.origin, published.repositories[MAE]
    assert (origin.repo_id, origin.revision, origin.filename) == (MAE, repository.commit, "checkpoint_final.pth")
    assert origin.sha256 == hashlib.sha256(repository.files["checkpoint_final.pth"]).hexdigest()
    assert (origin.licence, "2412.17041" in str(origin.citation)) == ("cc-by-4.0", True)
    assert "cc-by-4.0" in str(origin)
    held = {f.name for f in found.path.parent.iterdir()}
    assert held == {"checkpoint_final.pth", "adaptation_plan.json", "config.json"}
    assert not published.asked(".py")
    assert not published.asked(".pkl")
    assert len(published.asked("GET /AnonRes")) == 3
    again = resolve_source(f"https://huggingface.co/{MAE}")
    assert again == found
    assert len(published.asked("GET /AnonRes")) == 3  # everything came from the cache
    by_commit = resolve_source(f"{MAE}@{origin.revision}")
    assert by_commit.path == found.path
    local = resolve_source(found.path.parent)  # a snapshot folder still knows what it is
    assert (local.origin.repo_id, local.origin.revision) == (MAE, origin.revision)


def test_a_new_version_is_fetched_and_the_old_one_stays(published: Any) -> None:
    old = resolve_source(MAE)
    published.repositories[MAE].files["checkpoint_final.pth"] = weights(7)
    new = resolve_source(MAE)
    assert read_checkpoint(new.path)["network_weights"]["a"][0] == 7
    assert old.origin.revision != new.origin.revision
    assert old.path.exists()


def test_an_interrupted_download_goes_on_where_it_was_cut(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # bytes; the client writes and counts in such chunks
    published.drop_after = 5000
    found = resolve_source(MAE)
    assert read_checkpoint(found.path)["network_weights"]["a"].shape == (4000,)
    assert published.asked("bytes=5000-")


def test_wrong_bytes(published: Any) -> None:
    published.corrupt = 1  # the first large file arrives damaged: fetched once more
    found = resolve_source(f"hf://{MAE}/checkpoint_final.pth")
    assert found.origin.sha256 == hashlib.sha256(weights()).hexdigest()
    blob = found.path.resolve()
    blob.write_bytes(bytes(blob.stat().st_size))  # a cache damaged later: the same
    assert resolve_source(MAE).origin == found.origin
    blob.write_bytes(bytes(blob.stat().st_size))
    published.corrupt = 100
    with pytest.raises(CheckpointError, match=r"has SHA-256 \w+, the hub promises \w+: it is damaged"):
        resolve_source(MAE)


def test_offline(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as error:
        resolve_source(MAE)
    assert "HF_HUB_OFFLINE is set" in str(error.value)
    assert f"nnUNetv2_pretrain_models hf://{MAE} --download" in str(error.value)
    assert not published.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = resolve_source(MAE)
    requests = len(published.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = resolve_source(MAE)
    assert (offline.path, offline.origin) == (found.path, found.origin)
    assert resolve_source(f"hf://{MAE}@{str(found.origin.revision)[:8]}/checkpoint_final.pth").path == found.path
    assert len(published.requests) == requests
    with pytest.raises(CheckpointError, match="is not in the cache"):
        resolve_source(f"hf://{MAE}/other.pth")
    found.path.resolve().write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="is damaged"):
        resolve_source(MAE)


def test_no_network(published: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve_source(MAE)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert resolve_source(MAE).origin == found.origin
    assert "Using the copy in the cache" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"cannot be downloaded from http://127.0.0.1:\d+ \(ConnectError"):
        resolve_source("AnonRes/ResEncL-OpenMind-VF")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(found.path.parents[4] / "elsewhere"))
    with pytest.raises(CheckpointError, match="Where there is network, run"):
        resolve_source(MAE)


def test_full_disk(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_to_full_disk(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", write_to_full_disk)
    with pytest.raises(CheckpointError, match=r"cannot be stored in the cache .*hub_cache: No space left on device"):
        resolve_source(MAE)


def test_no_such_model_or_no_access(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("ORG/GATED", {"checkpoint_final.pth": weights()}, gated=True)
    hub.add("ORG/PRIVATE", {"checkpoint_final.pth": weights()}, private=True)
    with pytest.raises(CheckpointError) as gated:
        resolve_source("ORG/GATED")
    assert f"Accept its terms at {hub.endpoint}/ORG/GATED" in str(gated.value)
    assert "hf auth login" in str(gated.value)
    with pytest.raises(CheckpointError, match="or it is private and you are not logged in"):
        resolve_source("ORG/PRIVATE")
    with pytest.raises(CheckpointError, match="Did you mean ResEncL-OpenMind-MAE"):
        resolve_source("AnonRes/ResEncL-OpenMind-MEA")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert resolve_source("ORG/GATED").path.is_file()
    assert resolve_source("ORG/PRIVATE").path.is_file()
    with pytest.raises(CheckpointError, match="has no revision v9"):
        resolve_source("ORG/GATED@v9")


def test_what_lies_on_this_machine_wins(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "ORG" / "NAME"
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").write_bytes(weights())
    (folder / "checkpoint_best.pth").write_bytes(weights(1))
    found = resolve_source("ORG/NAME")
    assert found.path == Path("ORG/NAME/checkpoint_final.pth")
    assert found.origin.to_json() == {
        "path": str(folder / "checkpoint_final.pth"),
        "sha256": hashlib.sha256(weights()).hexdigest(),
    }
    model = tmp_path / "SSLMAETrainer__plans__3d_fullres"
    for fold in ("fold_0", "fold_1"):
        (model / fold).mkdir(parents=True)
        (model / fold / "checkpoint_final.pth").write_bytes(weights())
    with pytest.raises(
        CheckpointError, match=r"holds 2 checkpoints. Choose one of them:\n.*fold_0/checkpoint_final.pth"
    ):
        resolve_source(model)
    assert resolve_source(model / "fold_1").path.name == "checkpoint_final.pth"
    assert not hub.requests


@pytest.mark.parametrize(
    "text", ["", "no_such_thing", "~/nowhere/at_all", "folder/missing.pth", "ResEncL-OpenMind-MEA"]
)
def test_nothing_of_that_name(text: str, hub: Any) -> None:
    with pytest.raises(CheckpointError, match=r"Expected|exists only up to|no checkpoints in"):
        resolve_source(text)
    assert not hub.requests


def test_known_models_have_names_of_their_own_and_valid_addresses() -> None:
    names = [model.name.lower() for model in KNOWN_MODELS]
    assert len(set(names)) == len(names) > 20
    for model in KNOWN_MODELS:
        assert parse_address(model.repo_id) == HubAddress(model.repo_id)
        assert model.filename is None or "/" in model.filename
