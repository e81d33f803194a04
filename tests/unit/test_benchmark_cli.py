"""nnUNetv2_pretrain_benchmark: mistakes that are answered with what to type, and the command as users start it."""

from __future__ import annotations

import json

import pytest

from nnunet_ssl.cli.benchmark import build_parser, main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "spark3d", "--backbone", "primus_tiny"], "Use --backbone resenc_l or resenc_tiny"),
        (["--iterations", "4"], "--iterations wants 5 or more"),
        (["--warmup", "0"], "--warmup wants 1 or more"),
        (["--workers", "-1"], "--workers wants 0 or more"),
        (["-p", "somePlans"], "Name the data set as well"),
        (["--backbone", "resenc_tiny", "--patch-size", "33"], "32 x 32 x 32 and 40 x 40 x 40"),
        (["--backbone", "resenc_tiny", "--patch-size", "32", "40"], "three numbers"),
        (["--set", "mae.mask_size=3"], "unknown setting 'mask_size'"),
        (["906", "--backbone", "resenc_tiny"], "There is no dataset 906"),
        (["905", "--backbone", "resenc_tiny"], "has no plans nnUNetSSLResEncTinyPlans"),
        (["905", "-p", "itsPlans"], "There are no preprocessed data"),
        (["--json", "/nowhere/at/all.json"], "There is no folder /nowhere/at"),
    ],
)
def test_mistakes(arguments, message, nnunet_folders, tiny_dataset, monkeypatch, tmp_path, capsys):
    from nnunet_ssl.planners.synthetic import DATASET, synthetic_dataset

    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if arguments[0] == "905":
        name = tiny_dataset(nnunet_folders["nnUNet_raw"], 905, num_cases=1).name
        folder = tmp_path / "nnUNet_preprocessed" / name
        folder.mkdir()
        with synthetic_dataset(str(tmp_path / "plans"), "SSLPlannerResEncTiny", [32] * 3, cases=1) as plans:
            (folder / "itsPlans.json").write_text(json.dumps({**plans, "dataset_name": name}))
            description = tmp_path / "plans" / "preprocessed" / DATASET / "dataset.json"
            (folder / "dataset.json").write_text(description.read_text())
    with pytest.raises(SystemExit) as exit_code:
        main([*arguments, "-device", "cpu"])
    assert exit_code.value.code == 1
    assert message in capsys.readouterr().err


def test_without_a_gpu(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit):
        main([])
    assert "Add -device cpu" in capsys.readouterr().err


def test_flags_of_pretraining_that_are_not_offered_keep_their_defaults():
    args = build_parser().parse_args(["--batch-size", "4"])
    assert (args.fold, args.lr, args.seed, args.batch_size, args.device) == ("all", None, None, 4, "cuda")


@pytest.mark.slow
def test_fresh_process_with_workers(run_command, tmp_path):
    environment = {"nnUNet_raw": None, "nnUNet_preprocessed": None, "nnUNet_results": None}
    small = ["--patch-size", "32", "--batch-size", "2", "--iterations", "5", "--warmup", "1", "--workers", "1"]
    command = [
        "python",
        "-m",
        "nnunet_ssl.cli.benchmark",
        "--backbone",
        "primus_tiny",
        *small,
        "-device",
        "cpu",
    ]
    done = run_command([*command, "--json", tmp_path / "figures.json"], environment)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["setting"]["workers"] == 1
    assert figures["speed"]["warmup"] == 5  # the four batches that may be ready when it starts, and one
    assert figures["memory"]["workers"] is None or figures["memory"]["workers"] > 10 * 2**20
    assert "samples/s" in done.stdout
    assert "Traceback" not in done.stderr
