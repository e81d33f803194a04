"""--estimate without a step: what fits, what it takes, and what it says where it cannot measure."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from nnunet_ssl.cli.pretrain import main
from nnunet_ssl.corpus.overview.sections import as_text
from nnunet_ssl.planners.to_estimate import plans_without_data
from nnunet_ssl.report.gpu_times import gpu_times, times_section
from nnunet_ssl.report.memory_fit import CARDS, GIB, Count, Fit, fit_section, fits, needed
from nnunet_ssl.trainers.profiling.fitting import Curve

PAGES = Path(__file__).resolve().parents[2] / "docs" / "make_gpu_times.py"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TINY = ["--backbone", "resenc_tiny", "--patch-size", "32", "--estimate"]


# ---- which batch fits ------------------------------------------------------------------------------------------------


class Steps:
    """Stands for a counted step: 1 GiB of states, then the higher of two lines per image; 0.5 GiB more in parts."""

    def __init__(self, per_image=5.0, images_needed=1):
        self.method, self.per_image = self, per_image
        self.images_needed, self.asked = images_needed, []

    def count(self, images, parts=1):
        self.asked.append((images, parts))
        peak = max(4 + 0.5 * images, 1 + self.per_image * images / parts + 0.01 * images) + 0.5 * (parts > 1)
        return Count(images, parts, round(peak * GIB), GIB, GIB // 2, GIB // 4)


@pytest.mark.parametrize("per_image", [0.4, 1.7, 5.0, 12.0, 80.0])
@pytest.mark.parametrize("images_needed", [1, 2])
def test_the_largest_batch_is_the_largest_that_fits(per_image, images_needed):
    steps = Steps(per_image, images_needed)
    curve = Curve(steps, 1, False)
    curve.reach(max(CARDS.values()) * GIB)
    assert len(steps.asked) <= 4  # each costs seconds
    for card, room in CARDS.items():
        fitting = [n for n in range(images_needed, 300) if needed(Steps(per_image).count(n).peak) <= room * GIB]
        found = curve.largest(card)
        assert found == (max(fitting) if fitting else None) or (found in fitting and found >= max(fitting) - 1)


def test_the_fewest_parts_that_fit():
    curve = Curve(Steps(), 1, False)
    assert [curve.micro_batches(8, card) for card in CARDS] == [4, 2, 1]
    assert [curve.micro_batches(7, card) for card in CARDS] == [7, 7, 1]  # equal parts
    assert [Curve(Steps(80.0), 1, False).micro_batches(8, card) for card in CARDS] == [None, None, None]


def test_room_is_asked_for_beside_the_tensors():
    assert needed(10 * GIB) == pytest.approx(12.5 * GIB)
    assert fits(19.9 * GIB, "24 GB")
    assert not fits(20.1 * GIB, "24 GB")


def test_what_several_processes_hold():
    count = Count(images=2, micro_batches=1, peak=1000, states=300, gradients=100, gradients_at_peak=40)
    assert count.held() == 1000
    assert count.held(4) == 1060  # DDP keeps room for all gradients
    assert count.held(4, shard=True) == 1000 - (300 + 40) * 3 // 4


def test_table_of_what_fits():
    found = [
        Fit(False, 8, 41 * GIB, dict(zip(CARDS, (3, 6, 14), strict=True)), dict(zip(CARDS, (4, 2, 1), strict=True))),
        Fit(
            True, 8, 20 * GIB, dict(zip(CARDS, (None, 9, 20), strict=True)), dict(zip(CARDS, (None, 1, 1), strict=True))
        ),
    ]
    text = as_text([fit_section(found, processes=4, shard=True)])
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert rows[1:6] == [
        ["24 GB", "40 GB", "80 GB"],
        ["largest batch per GPU", "3", "6", "14"],
        ["with --recompute", "none", "9", "20"],
        ["this run, 8 per GPU", "--accumulate 4", "--accumulate 2", "fits"],
        ["with --recompute", "does not fit", "fits", "fits"],
    ]
    assert "41.0 GiB, 20.0 GiB with --recompute" in text
    assert "Assumed: 4 processes hold equal shares" in text


# ---- the table of times ----------------------------------------------------------------------------------------------


def test_hours_of_a_run():
    row = next(r for r in gpu_times() if (r.backbone, r.batch, r.compiled) == ("resenc_l", 8, False))
    assert row.hours() == pytest.approx(1000 * (250 + 50 / 3) * row.ms / 3.6e6)
    assert row.hours(epochs=10, iterations=100, validation=0) == pytest.approx(10 * 100 * row.ms / 3.6e6)


def test_rows_are_what_they_say():
    rows = gpu_times()
    assert len({(r.method, r.backbone, r.patch, r.batch, r.card, r.how, r.torch) for r in rows}) == len(rows)
    for row in rows:
        assert row.ms > 1
        assert 0.5 < row.allocated_gib <= row.reserved_gib < 200
        assert row.precision in ("bfloat16", "float16", "float32")
        plans_without_data({"resenc_l": "SSLPlannerResEncL", "primus_m": "SSLPlannerPrimusM"}[row.backbone])


def test_times_say_for_what_they_were_measured():
    known = times_section("mae", "resenc_l", (160, 160, 160), 1000, 250, 50)
    assert {"2", "8"} == {row[1] for row in known.rows}
    assert "Measured with" not in known.caption
    assert "Measured with patches of 160^3" in times_section("mae", "resenc_l", (96, 96, 96), 1000, 250, 50).caption
    for unknown in (("mae", None), ("mae", "primus_tiny")):
        section = times_section(*unknown, (64, 64, 64), 50, 50, 10)
        assert section.rows[0][0] == "not measured"
        assert "Nobody has measured mae" in section.caption


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def login_node(monkeypatch, tmp_path):
    """No GPU, no data, no folders; whoever starts to prepare fails."""
    for name in (*FOLDERS, "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("nnunet_ssl.cli.pretrain.prepare", lambda _: pytest.fail("nothing is to be prepared"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_data_and_device(login_node, capsys):
    main(["745", "--method", "mae", *TINY, "--batch-size", "4", "--epochs", "7"])
    out = capsys.readouterr().out
    assert "745: not planned here yet. Counted for nnUNetSSLResEncTinyPlans" in out
    assert re.search(r"this run, 4 per GPU +fits +fits +fits\n", out)
    assert "Nobody has measured mae with resenc_tiny" in out
    assert "Nothing was measured: CUDA was asked for" in out
    assert list(login_node.iterdir()) == []


def test_preset_of_the_table_is_recognised(login_node, capsys):
    main(["745", "--backbone", "resenc_l", "--patch-size", "64", "--batch-size", "2", "--epochs", "100", "--estimate"])
    out = capsys.readouterr().out
    row = next(r for r in gpu_times() if (r.backbone, r.batch, r.compiled) == ("resenc_l", 2, True))
    assert re.search(rf"NVIDIA H200 +2 +bfloat16, compiled +{row.ms:.1f} +{row.hours(100):.3g}\n", out)
    assert "Measured with patches of 160^3, not those of this run" in out


# What plans say of the data they are for.
OF_DATA = {
    "foreground_intensity_properties_per_channel": {}, "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
}  # fmt: skip
OF_CONFIGURATION = {
    "data_identifier": "tiny", "preprocessor_name": "SSLPreprocessor", "spacing": [1, 1, 1], "use_mask_for_norm": [False],
}  # fmt: skip


def test_plans_that_are_there_are_taken(login_node, monkeypatch, capsys):
    for name in FOLDERS:
        monkeypatch.setenv(name, str(login_node / name))
    dataset = login_node / "nnUNet_preprocessed" / "Dataset745_Planned"
    dataset.mkdir(parents=True)
    plans = {**plans_without_data("SSLPlannerPrimusTiny"), **OF_DATA}
    plans["configurations"]["3d_fullres"].update(OF_CONFIGURATION, patch_size=[32, 32, 32])
    plans["configurations"]["3d_fullres"]["ssl"]["batch_size"] = 6
    for name in ("nnUNetSSLPrimusTinyPlans", "myPlans"):
        plans |= {"dataset_name": dataset.name, "plans_name": name}
        (dataset / f"{name}.json").write_text(json.dumps(plans))
        main(["745", *(["-p", name] if name == "myPlans" else ["--backbone", "primus_tiny"]), "--estimate"])
        out = capsys.readouterr().out
        assert f"Counted for the plans {name} of Dataset745_Planned." in out
        assert "this run, 6 per GPU" in out
    assert sorted(f.name for f in dataset.iterdir()) == ["myPlans.json", "nnUNetSSLPrimusTinyPlans.json"]
    with pytest.raises(SystemExit):
        main(["745", "-p", "otherPlans", "--estimate"])
    assert "has no plans otherPlans" in capsys.readouterr().err


def test_shards_are_counted(login_node, capsys):
    main(["745", *TINY, "--batch-size", "8", "--num-gpus", "4", "--shard"])
    out = capsys.readouterr().out
    assert "this run, 2 per GPU" in out
    assert "Assumed: 4 processes hold equal shares of weights, gradients and optimiser" in out
    assert "Nothing was measured: what one process does of a sharded training" in out


def test_under_torchrun_one_process_prints(login_node, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        main(["745", *TINY, "--batch-size", "4", "-device", "cpu"])
        out = capsys.readouterr().out
        if rank == "1":
            assert out == ""
    assert "this run, 2 per GPU" in out
    assert "Each of 2 processes holds everything" in out
    assert "Nothing was measured: under torchrun" in out


def test_batches_that_cannot_be_shared_are_refused(login_node, capsys):
    with pytest.raises(SystemExit):
        main(["745", *TINY, "--batch-size", "6", "--num-gpus", "4"])
    assert "A batch of 6 cannot be shared evenly by 4 processes" in capsys.readouterr().err


def test_documents_have_the_table_of_times(run_command):
    done = run_command(["python", PAGES, "--check"], check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("method", "backbone"), [("mae", "resenc_l"), ("mae", "primus_m"), ("simclr", "primus_m")])
def test_documents_have_the_counted_memory(method, backbone):
    spec = importlib.util.spec_from_file_location("make_gpu_times", PAGES)
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    wanted = [f"`{m}` | `{b}`" for m, b in pages.pairs()]
    text = (PAGES.parent / "benchmark.md").read_text().partition("### Counted memory")[2].partition("## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row[2 : len(name) + 2] for row, name in zip(rows, wanted, strict=True)] == wanted
    assert f"| {' | '.join(pages.memory_row(method, backbone))} |" in rows
