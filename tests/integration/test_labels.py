"""Half the labels, and bad ones, through the real commands: who is trained on what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_ten_have_labels_two_are_bad_and_the_rest_have_none(
    nnunet_folders: dict[str, str], tiny_dataset: Callable[..., Path], run_command: Callable[..., Any]
) -> None:
    dataset = tiny_dataset(nnunet_folders["nnUNet_raw"], 900, num_cases=14, num_labelled=10)
    (dataset / "labelsTr" / "tiny_00.nii.gz").write_bytes(b"nope")
    (dataset / "labelsTr" / "tiny_01.nii.gz").write_bytes(
        (dataset / "imagesTr" / "tiny_02_0000.nii.gz").read_bytes()[:400]
    )
    env = {**nnunet_folders, "nnUNet_n_proc_DA": "1"}
    command = ["nnUNetv2_pretrain", "900", "--backbone", "resenc_tiny", "-np", "1", "-device", "cpu"]
    done = run_command([*command, "--preprocess-only"], env)
    assert "2 labels cannot be used" in done.stdout
    base = Path(nnunet_folders["nnUNet_preprocessed"]) / dataset.name
    assert len(list((base / "nnUNetSSLResEncTinyPlans_3d_fullres").glob("*.pkl"))) == 14
    good = {f"tiny_{n:02d}" for n in range(2, 10)}
    assert {f.name.removesuffix(".nii.gz") for f in (base / "gt_segmentations").iterdir()} == good
    splits = json.loads((base / "splits_final.json").read_text())
    assert len(splits) == 5
    for fold in splits:
        assert set(fold["train"]) | set(fold["val"]) == good, "nnU-Net's own trainers see labelled cases alone"

    short = ["--epochs", "1", "--iterations-per-epoch", "2", "--val-iterations-per-epoch", "1", "--batch-size", "2"]
    trained = run_command([*command, *short, "-f", "0"], env)
    held_out = len(splits[0]["val"])
    assert f"14 images of 14 subjects; {held_out} images" in trained.stdout, (
        "pre-training uses all images but the fold's"
    )
