"""Files made to harm, given to the commands a user types, each in a fresh process: nothing of them is ever run."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = pytest.mark.slow


class Bomb:
    """Writes a file when unpickled by a loader that runs what it reads."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


def both_at_once(path: Path, checkpoint: Mapping[str, Any], witness: Path) -> None:
    """A file that a reader of safetensors takes for one of ours with `checkpoint` in it, and that a pickle reader runs.

    The length of the header is, to a pickle, a text that ends within the first tensor's name; a V in there makes a line of
    text of the rest of the header; then comes what runs.
    """
    weights: Mapping[str, Tensor] = checkpoint["network_weights"]
    rest = {key: value for key, value in checkpoint.items() if key != "network_weights"}
    metadata = {"nnunet_ssl": "1", "names": json.dumps(list(weights)), "aliases": "{}", "config": json.dumps(rest)}
    save_file({name: tensor.clone() for name, tensor in weights.items()}, path, metadata)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    program = b"\n0cbuiltins\nexec\n(V" + f"open({str(witness)!r}, 'w').close()".encode() + b"\ntR."
    program += b"\n" * (-len(program) % 8)
    skipped = 5 + (2 << 8)
    moved = {"V" * skipped: {"dtype": "U8", "shape": [len(program)], "data_offsets": [0, len(program)]}}
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + len(program) for offset in entry["data_offsets"]]
        moved[name] = entry
    text = json.dumps(moved, separators=(",", ":")).encode()
    text = text.ljust(ord("X") + (skipped << 8))
    assert struct.pack("<Q", len(text)) == b"X" + struct.pack("<I", skipped) + b"\0\0\0"
    path.write_bytes(struct.pack("<Q", len(text)) + text + program + content[8 + length :])


# ---- safetensors and pickle at once ----------------------------------------------------------------------------------------


def test_the_file_used_here_runs_where_it_is_taken_for_a_pickle(tmp_path: Path) -> None:
    """Otherwise nothing of it would be run for being badly made."""
    both_at_once(tmp_path / "a.pth", {"network_weights": {"a": torch.zeros(3)}}, tmp_path / "exploded")
    assert set(load_file(tmp_path / "a.pth")) >= {"a"}
    with (tmp_path / "a.pth").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "SSLFinetuneTrainer"])
def test_pretrained_weights_that_are_two_things_at_once(trainer, place, run_command, tmp_path):
    both_at_once(tmp_path / "weights.pth", place.checkpoint("nnUNetTrainer"), tmp_path / "exploded")
    result = run_command(
        place.train(trainer, "-pretrained_weights", tmp_path / "weights.pth"), place.folders, check=False, timeout=120
    )
    assert not (tmp_path / "exploded").exists()
    assert "is a safetensors file and a pickle at once" in result.stderr
    assert result.returncode != 0


def test_pretrained_weights_from_the_hub_that_are_two_things_at_once(place, run_command, tmp_path, hub_server):
    both_at_once(tmp_path / "weights.pth", place.checkpoint("nnUNetTrainer"), tmp_path / "exploded")
    hub_server.add("ORG/NAME", {"checkpoint_final.pth": (tmp_path / "weights.pth").read_bytes()})
    hub = {"HF_ENDPOINT": hub_server.endpoint, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = place.train("nnUNetTrainer", "-pretrained_weights", "ORG/NAME")
    result = run_command(command, {**place.folders, **hub}, check=False, timeout=120)
    assert not (tmp_path / "exploded").exists()
    assert "is a safetensors file and a pickle at once" in result.stderr


@pytest.mark.parametrize(("flag", "name"), [("--c", "checkpoint_latest.pth"), ("--val", "checkpoint_final.pth")])
@pytest.mark.parametrize("trainer", ["SSLFinetuneTrainer", "SSLMAETrainer"])
def test_resuming_and_validating_what_is_two_things_at_once(flag, name, trainer, place, run_command, tmp_path):
    folder = place.model(trainer)
    both_at_once(folder / "fold_0" / name, place.checkpoint(trainer), tmp_path / "exploded")
    result = run_command(place.train(trainer, flag), place.folders, check=False, timeout=120)
    assert not (tmp_path / "exploded").exists()
    assert "is a safetensors file and a pickle at once" in result.stderr


def test_predicting_with_what_is_two_things_at_once(place, run_command, tmp_path):
    folder = place.model("SSLFinetuneTrainer")
    both_at_once(folder / "fold_0/checkpoint_final.pth", place.checkpoint("SSLFinetuneTrainer"), tmp_path / "exploded")
    result = run_command(place.predict(tmp_path, "SSLFinetuneTrainer"), place.folders, check=False)
    assert not (tmp_path / "exploded").exists()
    assert "is a safetensors file and a pickle at once" in result.stderr


# ---- what nnU-Net itself opens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["SSLFinetuneTrainer", "SSLScratchTrainer"])
def test_our_trainers_predict_from_data_alone(trainer, place, run_command, tmp_path):
    checkpoint = place.checkpoint(trainer)
    file = place.model(trainer) / "fold_0" / "checkpoint_final.pth"
    torch.save({**checkpoint, "bomb": Bomb(tmp_path / "exploded")}, file)
    command = place.predict(tmp_path, trainer)
    result = run_command(command, place.folders, check=False)
    assert not (tmp_path / "exploded").exists()
    assert "nothing of it was run" in result.stderr
    torch.save(checkpoint, file)
    result = run_command(command, place.folders)
    assert (tmp_path / "out" / "tiny_00.nii.gz").is_file()
    assert "WARNING" not in result.stderr


def test_nnunets_own_trainers_warn_once_and_refuse_where_asked(place, run_command, tmp_path):
    model = place.model("nnUNetTrainer")
    (model / "fold_1").mkdir()
    checkpoint = place.checkpoint("nnUNetTrainer")
    for fold in (0, 1):
        torch.save({**checkpoint, "more": Bomb(tmp_path / "exploded")}, model / f"fold_{fold}" / "checkpoint_final.pth")
    command = place.predict(tmp_path, "nnUNetTrainer", "0", "1")
    refused = run_command(command, {**place.folders, "NNUNET_SSL_REFUSE_UNSAFE": "1"}, check=False)
    assert refused.returncode != 0
    assert "nothing of it was run" in refused.stderr
    assert not (tmp_path / "exploded").exists()
    allowed = run_command(command, place.folders)
    assert allowed.stderr.count("WARNING: nnU-Net unpickles") == 1
    assert str(model / "fold_0" / "checkpoint_final.pth") in allowed.stderr
    assert "NNUNET_SSL_REFUSE_UNSAFE=1" in allowed.stderr
    assert (tmp_path / "exploded").exists()  # nnU-Net's own behaviour, which is not ours to change
    assert (tmp_path / "out" / "tiny_00.nii.gz").is_file()
    (tmp_path / "exploded").unlink()
    for fold in (0, 1):
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    quiet = run_command(command, {**place.folders, "NNUNET_SSL_REFUSE_UNSAFE": "1"})
    assert "WARNING" not in quiet.stderr
