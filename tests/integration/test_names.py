"""Names that would become other files, through the real commands: refused before anything is touched, or made harmless."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeDataset = Callable[..., Path]


@pytest.mark.parametrize(
    "command", [["nnUNetv2_pretrain", "950", "--backbone", "resenc_tiny", "--preprocess-only"], ["fpe"]]
)
def test_a_case_called_like_a_path_touches_nothing(
    nnunet_folders: dict[str, str], tiny_dataset: MakeDataset, run_command: Callable[..., Any], command: list[str]
) -> None:
    raw = tiny_dataset(nnunet_folders["nnUNet_raw"], 950, num_cases=2)
    victim = Path(nnunet_folders["nnUNet_raw"]).parent / "victim"
    victim.write_text("mine")
    image = str(raw / "imagesTr" / "tiny_00_0000.nii.gz")
    names = ["ok", "ok_seg", "OK", f"../../../../{victim.name}", str(victim)]
    content = json.loads((raw / "dataset.json").read_text())
    content["dataset"] = {name: {"images": [image], "label": None} for name in names}
    (raw / "dataset.json").write_text(json.dumps(content))
    if command == ["fpe"]:
        command = ["nnUNetv2_extract_fingerprint", "-d", "950", "-fpe", "SSLFingerprintExtractor", "-np", "1"]
    done = run_command(command, nnunet_folders, check=False)
    assert done.returncode != 0
    assert "4 case names in" in done.stderr
    assert victim.read_text() == "mine"
    assert not list(Path(nnunet_folders["nnUNet_preprocessed"]).rglob("*.pkl"))


def test_numbers_above_999_and_files_called_like_variables(
    nnunet_folders: dict[str, str], tiny_dataset: MakeDataset, run_command: Callable[..., Any]
) -> None:
    """Dataset1234 beside Dataset123, and an image called $HOME: imported, prepared, each by its own number."""
    raw = Path(nnunet_folders["nnUNet_raw"])
    tiny_dataset(raw, 123, num_cases=1)
    other = tiny_dataset(raw, 951, num_cases=3)
    images = raw.parent / "images"
    images.mkdir()
    for number, image in enumerate(sorted((other / "imagesTr").iterdir())):
        image.rename(images / ("$HOME.nii.gz" if number == 0 else f"{number}.nii.gz"))
    run_command(["nnUNetv2_pretrain_import", "-i", images, "-d", "1234", "-n", "Big"], nnunet_folders)
    prepare = ["nnUNetv2_pretrain", "1234", "--backbone", "resenc_tiny", "--preprocess-only", "-np", "1"]
    done = run_command(prepare, nnunet_folders)
    assert "Dataset1234_Big" in done.stdout
    folder = Path(nnunet_folders["nnUNet_preprocessed"])
    assert {p.stem for p in folder.rglob("*.pkl")} == {"HOME", "1", "2"}
    assert not (folder / "Dataset123_Tiny").exists()
