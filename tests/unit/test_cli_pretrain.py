"""nnUNetv2_pretrain: its flags, and the words of nnU-Net's commands. Mistakes: docs/mistakes.md."""

from __future__ import annotations

from importlib import import_module

import pytest

from nnunet_ssl.cli.flag_settings import flags_as_settings
from nnunet_ssl.cli.pretrain import main
from nnunet_ssl.cli.pretrain_flags import apply_flags, build_parser

COMMANDS = (
    "pretrain",
    "finetune",
    "plan_finetune",
    "import_corpus",
    "corpus",
    "export",
    "info",
    "models",
    "benchmark",
    "report",
)


@pytest.fixture
def nnunet_environment(nnunet_folders, monkeypatch):
    """nnU-Net's folders in this process."""
    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return nnunet_folders


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


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("4", (["4"], "3d_fullres", "all", "mae")),
        ("4 745", (["4", "745"], "3d_fullres", "all", "mae")),
        ("-d 4 745", (["4", "745"], "3d_fullres", "all", "mae")),
        ("4 3d_fullres all", (["4"], "3d_fullres", "all", "mae")),
        ("4 2d 0 -tr SSLMAETrainer", (["4"], "2d", "0", "mae")),
        ("-d 4 3d_fullres_large 3", (["4"], "3d_fullres_large", "3", "mae")),
        ("4 -c 2d -f 1 --c -tr SSLSwinUNETRTrainer -p nnUNetPlans", (["4"], "2d", "1", "swin_unetr")),
        ("Dataset004_Hippocampus all -num_gpus 2", (["Dataset004_Hippocampus"], "3d_fullres", "all", "mae")),
    ],
)
def test_what_nnunets_users_type_is_understood(typed, understood):
    args = build_parser().parse_args(typed.split())
    assert (args.datasets, args.configuration, args.fold, args.method) == understood


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_short_help_a_long_one_and_a_greeting(name, capsys):
    """The short help names every flag and explains the usual ones, in a screen or two; the greeting shows three examples."""
    build = import_module(f"nnunet_ssl.cli.{name}").build_parser
    shown = {}
    for argument in ("--help", "--help=all"):
        with pytest.raises(SystemExit) as left:
            build().parse_args([argument])
        assert left.value.code == 0
        shown[argument] = capsys.readouterr().out
    parser = build()
    flags = {action.option_strings[0] for action in parser._actions if action.option_strings}
    for text in shown.values():
        assert [flag for flag in flags if flag not in text] == []
        assert text.startswith(f"usage: {parser.prog} ")
    assert len(shown["--help"].splitlines()) <= 50
    if not parser.greets:
        return
    with pytest.raises(SystemExit) as left:
        parser.parse_args([])
    greeting = capsys.readouterr().out
    assert left.value.code == 2
    assert len([line for line in greeting.splitlines() if line.startswith(f"  {parser.prog} ")]) == 3
