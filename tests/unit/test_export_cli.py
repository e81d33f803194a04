"""nnUNetv2_pretrain_export: flags, mistakes, and asking before anything on the hub is replaced."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunet_ssl.checkpoints.hub import publish
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.checkpoints.write import save_checkpoint
from nnunet_ssl.cli.export import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A bare state dict, as other programs write them."""
    weights = {"encoder.stages.0.0.convs.0.conv.weight": torch.ones(2, 1, 3, 3, 3)}
    save_checkpoint(weights, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


class Terminal(io.StringIO):
    """Standard input with somebody in front of it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Calls of push_to_hub; the repository holds a file already."""
    calls: list[dict] = []

    def push(folder: Path, repo_id: str, **options: bool) -> str:
        calls.append({"files": sorted(p.name for p in Path(folder).iterdir()), "repo": repo_id, **options})
        there = SimpleNamespace(private=options["private"], siblings=[SimpleNamespace(rfilename="model.safetensors")])
        publish._refuse(repo_id, there, options["private"], options["overwrite"])
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(publish, "push_to_hub", push)
    return calls


def flags(file: Path, *more: str) -> list[str]:
    return [str(file), "-o", str(file.parent / "out"), "--format", "safetensors", *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--public"], "--public goes with --push-to-hub ORG/NAME"),
        (["--push-to-hub", "name"], "wants ORG/NAME, found 'name'"),
        (["-f", "x"], 'numbers of folds or "all"'),
        (["-f", "0"], "-f and -chk go with a model folder"),
        (["--format", "nnunet", "--keep-log"], "go with --format nnssl and safetensors"),
        (["--format", "nnunet"], "lies in no model folder"),
        (["--format", "nnssl"], "has no nnssl_adaptation_plan"),
    ],
)
def test_mistakes(more: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(flags(file, *more))
    assert exit_code.value.code == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (file.parent / "out").exists()


def test_export_with_a_card_and_its_report(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(flags(file, "--licence", "CC-BY-4.0"))
    said = capsys.readouterr().out
    assert "README.md, config.json, model.safetensors" in said
    assert "CC-BY-4.0" in (file.parent / "out" / "README.md").read_text()
    written = read_checkpoint(file.parent / "out" / "model.safetensors")
    assert written["ssl"]["licence"] == "CC-BY-4.0"
    main([str(file.parent / "out"), "-o", str(file.parent / "again"), "--format", "safetensors"])  # an export as X
    assert read_checkpoint(file.parent / "again" / "model.safetensors")["ssl"] == written["ssl"]


def test_without_a_terminal_the_hub_is_not_overwritten(
    file: Path, hub: list[dict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(SystemExit):
        main(flags(file, "--push-to-hub", "ORG/NAME"))
    assert "ORG/NAME already holds model.safetensors" in capsys.readouterr().err
    assert hub == [
        {
            "files": ["README.md", "config.json", "model.safetensors"],
            "repo": "ORG/NAME",
            "private": True,
            "overwrite": False,
        }
    ]


@pytest.mark.parametrize(("answer", "pushed"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_at_a_terminal_it_asks(
    answer: str, pushed: bool, file: Path, hub: list[dict], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    if pushed:
        main(flags(file, "--push-to-hub", "ORG/NAME", "--public"))
        assert "Published: https://hub/ORG/NAME" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit):
            main(flags(file, "--push-to-hub", "ORG/NAME", "--public"))
    assert [call["overwrite"] for call in hub] == ([False, True] if pushed else [False])
    assert not any(call["private"] for call in hub)


def test_overwrite_asks_nobody(file: Path, hub: list[dict]) -> None:
    main(flags(file, "--push-to-hub", "ORG/NAME", "--overwrite"))
    assert [call["overwrite"] for call in hub] == [True]


def test_fold_of_a_pretraining_is_found_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRAINER__PLANS__CONFIGURATION of a pre-training goes to the nnssl format, and says so where it cannot."""
    fold = tmp_path / "SSLMAETrainer__plans__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (fold.parent / name).write_text("{}")
    save_checkpoint({"network_weights": nn.Linear(2, 2).state_dict(), "ssl": {}}, fold / "checkpoint_final.pth")
    with pytest.raises(SystemExit):
        main([str(fold.parent), "-o", str(tmp_path / "out")])
    assert "has no nnssl_adaptation_plan" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(fold.parent), "-o", str(tmp_path / "out"), "--format", "nnunet"])
    assert "comes from a pre-training" in capsys.readouterr().err
