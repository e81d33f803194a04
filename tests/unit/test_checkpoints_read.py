"""Opening checkpoints: every kind of damage has its own error, and nothing foreign is ever run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nnunet_ssl.checkpoints.read import network_weights, read_checkpoint, read_latest
from nnunet_ssl.checkpoints.write import save_checkpoint
from nnunet_ssl.errors import CheckpointError

WEIGHTS = {"encoder.weight": torch.arange(12.0).reshape(3, 4), "encoder.bias": torch.ones(3)}


class Bomb:
    """Creates a file when unpickled by a loader that runs what it reads."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.witness}'",)


def test_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    for name in ("checkpoint_best.pth", "fold_0/checkpoint_final.pth", "log.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"There is no file.*checkpoint_best\.pth, fold_0/checkpoint_final\.pth\."
    ):
        read_checkpoint(tmp_path / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match=f"exists only up to {tmp_path}"):
        read_checkpoint(tmp_path / "no" / "folder" / "checkpoint_final.pth")


def test_folder_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    save_checkpoint({}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match=r"is a folder.*checkpoint_final\.pth"):
        read_checkpoint(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read_checkpoint(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_anywhere(tmp_path: Path, zipped: bool) -> None:
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"network_weights": WEIGHTS, "epoch": 3}, whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    assert read_checkpoint(whole)["epoch"] == 3
    for length in sorted({1, 2, 3, 5, 20, 100, len(content) - 1, *range(7, len(content), len(content) // 30)}):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"truncated|not a checkpoint: it begins with b'.{1,8}'"):
            read_checkpoint(cut)


def test_text_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CheckpointError, match=r"not a checkpoint: it begins with b'vers'"):
        read_checkpoint(tmp_path / "checkpoint.pth")


def test_zip_without_torch_content(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "checkpoint.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="zip archive but no PyTorch checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pth")


def test_tensor_file(tmp_path: Path) -> None:
    torch.save(torch.zeros(2, 3), tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"holds a Tensor of shape \(2, 3\), not a checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_pickle_bomb_is_named_and_never_run(tmp_path: Path, how: str) -> None:
    path, witness = tmp_path / "checkpoint.pth", tmp_path / "exploded"
    content = {"network_weights": WEIGHTS, "config": Bomb(witness)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content["config"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError, match=r"holds (posix|nt)\.system.*nothing of it was run"):
        read_checkpoint(path)
    assert not witness.exists()
    if how != "pickle":  # the bomb is live: a loader that trusts the file sets it off
        torch.load(path, weights_only=False)
        assert witness.exists()


def test_foreign_class_is_named(tmp_path: Path) -> None:
    torch.save({"network_weights": WEIGHTS, "path": Path("a")}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="holds pathlib"):
        read_checkpoint(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_stock_nnunet_checkpoint(tmp_path: Path, zipped: bool) -> None:
    stock = {
        "network_weights": WEIGHTS,
        "logging": {"dice": [[np.float64(0.25), np.float32(0.5)]], "epoch": [np.int64(3)], "nan": [np.float64("nan")]},
        "_best_ema": np.float64(0.75),
        "init_args": {"fold": 0, "device": torch.device("cuda")},
        "optimizer_state": None,
    }
    torch.save(stock, tmp_path / "checkpoint_final.pth", _use_new_zipfile_serialization=zipped)
    loaded = read_checkpoint(tmp_path / "checkpoint_final.pth")
    assert loaded["logging"]["dice"] == [[0.25, 0.5]]
    assert loaded["_best_ema"] == 0.75
    assert loaded["init_args"]["device"] == torch.device("cuda")
    assert torch.equal(loaded["network_weights"]["encoder.weight"], WEIGHTS["encoder.weight"])
    save_checkpoint(loaded, tmp_path / "again.pth")
    assert torch.load(tmp_path / "again.pth", weights_only=True)["_best_ema"] == 0.75


def test_numpy_1_scalars_are_read(tmp_path: Path) -> None:
    """numpy 1 wrote its scalars under another module name than numpy 2."""
    torch.save({"_best_ema": np.float64(0.75)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.infolist():
            content = new.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(entry.filename, content)
    assert b"numpy.core.multiarray" in (tmp_path / "old.pth").read_bytes()
    assert read_checkpoint(tmp_path / "old.pth")["_best_ema"] == 0.75


def test_allowing_numpy_is_not_left_switched_on(tmp_path: Path) -> None:
    save_checkpoint({}, tmp_path / "checkpoint.pth")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "checkpoint.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    loaded = network_weights(read_checkpoint(tmp_path / "model.safetensors"))
    assert torch.equal(loaded["encoder.weight"], WEIGHTS["encoder.weight"])
    content = (tmp_path / "model.safetensors").read_bytes()
    for length in (4, 40, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged or no safetensors"):
            read_checkpoint(tmp_path / "cut.safetensors")


def test_no_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint({}, tmp_path / "checkpoint.pth")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match="Permission denied"):
        read_checkpoint(tmp_path / "checkpoint.pth")


def test_latest_skips_what_is_damaged(tmp_path: Path) -> None:
    names = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_latest_previous.pth")
    for epoch in (1, 2):
        save_checkpoint({"epoch": epoch}, tmp_path / names[1], keep_previous=True)
    assert read_latest(tmp_path) == ({"epoch": 2}, tmp_path / names[1], [])
    (tmp_path / names[1]).write_bytes((tmp_path / names[1]).read_bytes()[:300])
    loaded, path, notes = read_latest(tmp_path, names)
    assert (loaded, path.name) == ({"epoch": 1}, names[2])
    assert len(notes) == 1
    assert "checkpoint_latest.pth is truncated" in notes[0].replace(str(tmp_path) + "/", "")
    (tmp_path / names[2]).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be read"):
        read_latest(tmp_path, names)


def test_latest_of_a_folder_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds none of checkpoint_final\.pth"):
        read_latest(tmp_path)


@pytest.mark.parametrize("key", ["network_weights", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_network_weights_of_any_format(key: str | None, prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in WEIGHTS.items()}
    checkpoint = wrapped if key is None else {key: wrapped, "epoch": 3}
    assert network_weights(checkpoint).keys() == WEIGHTS.keys()


def test_compiled_submodules_lose_their_prefix() -> None:
    assert list(network_weights({"encoder._orig_mod.stem.weight": torch.zeros(1)})) == ["encoder.stem.weight"]


def test_checkpoint_without_weights() -> None:
    with pytest.raises(CheckpointError, match=r"holds no network weights.*found epoch"):
        network_weights({"epoch": 3})
    with pytest.raises(CheckpointError, match="holds no network weights"):
        network_weights({})


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_advises_to_load_unsafely(tmp_path: Path, zipped: bool) -> None:
    torch.save({"config": Bomb(tmp_path / "exploded")}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"a": 1}))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / name)
        assert "weights_only" not in str(caught.value)
