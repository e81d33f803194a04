"""nnUNetv2_pretrain: flags, and mistakes that are answered with what to type."""

from __future__ import annotations

import pytest

from nnunet_ssl.cli.flag_settings import flags_as_settings
from nnunet_ssl.cli.pretrain import main
from nnunet_ssl.cli.pretrain_flags import apply_flags, build_parser


@pytest.fixture
def nnunet_environment(nnunet_folders, monkeypatch):
    """nnU-Net's folders in this process."""
    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return nnunet_folders


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["906", "-p", "noPlans"], "has no plans noPlans"),
        (["906", "--backbone", "resenc_tiny", "-c", "3d_lowres"], "3d_lowres"),
        (["906", "--backbone", "resenc_tiny", "-p", "nnUNetPlans"], "Use one of the two"),
        (["906", "--set", "mae.mask_size=3"], "unknown setting 'mask_size'"),
        (["906", "--set", "mask_size"], "--set wants KEY=VALUE"),
        (["906", "--mask-ratio", "1.5"], "mask_ratio"),
        (["906", "--epochs", "0"], "num_epochs must be a whole number >= 1"),
        (["906", "-pretrained_weights", "ResEncL-OpenMind-MEA"], "Did you mean ResEncL-OpenMind-MAE"),
        (["906", "-f", "x"], '"all" or the number of a fold'),
        (["906", "--backbone", "resenc_tiny", "--patch-size", "17"], "--patch-size 24 24 24"),
    ],
)
def test_mistakes(arguments, message, nnunet_environment, tiny_dataset, capsys):
    tiny_dataset(nnunet_environment["nnUNet_raw"], 906, num_cases=2)
    with pytest.raises(SystemExit) as exit_code:
        main([*arguments, "-np", "1", "-device", "cpu"])
    assert exit_code.value.code == 1
    assert message in capsys.readouterr().err


def test_results_folder_must_be_known(nnunet_environment, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(SystemExit):
        main(["906", "-device", "cpu"])
    assert "export nnUNet_results=" in capsys.readouterr().err


def test_flags_go_into_the_plans_of_the_run():
    flags = (
        "4 --epochs 3 --lr 0.01 --mask-ratio 0.6 --seed 5 --channels together --set optimizer=adamw --set mae.loss=l1"
    )
    args = build_parser().parse_args([*flags.split(), "--patch-size", "32"])
    plans = {"configurations": {"3d_fullres": {"patch_size": [64, 64, 64], "ssl": {"mae": {"mask_block": 8}}}}}
    apply_flags(plans, args)
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [32, 32, 32]
    assert configuration["ssl"] == {
        "num_epochs": 3,
        "initial_lr": 0.01,
        "seed": 5,
        "channels": "together",
        "optimizer": "adamw",
        "mae": {"mask_block": 8, "loss": "l1", "mask_ratio": 0.6},
    }


@pytest.mark.parametrize("name", ["shard", "deterministic"])
def test_flags_that_can_be_taken_back(name):
    parser = build_parser()
    assert flags_as_settings(parser.parse_args(["4", f"--{name}"])) == {name: True}
    assert flags_as_settings(parser.parse_args(["4", f"--no-{name}"])) == {name: False}


def test_flags_not_given_change_nothing():
    assert flags_as_settings(build_parser().parse_args(["4"])) == {}


def test_what_a_person_types_becomes_what_the_hints_say():
    typed = [
        "mae.normalise_target=False",
        "recompute=ON",
        "simclr.crop_size=16",
        "mae.mask_ratio=.5",
        "datasets=Dataset001_A",
    ]
    typed += ['simclr.temperature="0.1"', "filter=modality == 1", "min_foreground=0", "voco.batch_size=2"]
    args = build_parser().parse_args(["4", *(text for entry in typed for text in ("--set", entry))])
    assert flags_as_settings(args, axes=2) == {
        "recompute": True,
        "datasets": ["Dataset001_A"],
        "filter": "modality == 1",
        "min_foreground": 0.0,
        "mae": {"normalise_target": False, "mask_ratio": 0.5},
        "simclr": {"crop_size": [16, 16], "temperature": 0.1},
        "voco": {"batch_size": 2},
    }
