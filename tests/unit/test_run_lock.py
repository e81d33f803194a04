"""One run per result folder; a dead one holds nothing; what a run was started with is compared with what is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ssl.errors import FolderInUse, SettingsError
from nnunet_ssl.trainers.loop import run_lock
from nnunet_ssl.trainers.loop.asked import differences, note_weights, refuse_differences
from nnunet_ssl.trainers.loop.run_lock import alone_in

HOLDER = """
import sys, time
from nnunet_ssl.trainers.loop.run_lock import alone_in
with alone_in(sys.argv[1], "training A"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_run_is_told_who_holds_the_folder(holder, tmp_path):
    message = rf"process {holder.pid} on .*, training A since .*kill {holder.pid} .*--run-name"
    with pytest.raises(FolderInUse, match=message), alone_in(str(tmp_path), "training B"):
        pass
    holder.kill()
    holder.wait()
    with alone_in(str(tmp_path), "training B"), alone_in(str(tmp_path), "training B"):
        assert (tmp_path / run_lock.FILE).exists()
    assert not (tmp_path / run_lock.FILE).exists()


def test_folder_that_was_moved_during_a_run_can_be_used_again(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    with alone_in(str(before), "training A"):
        before.rename(after)
    assert (after / run_lock.FILE).exists()  # nobody could remove it there
    with alone_in(str(after), "training B"):
        pass
    assert not (after / run_lock.FILE).exists()


@pytest.mark.parametrize("lives", [True, False])
def test_holder_on_another_machine_is_given_time_to_show_that_it_lives(lives, tmp_path, monkeypatch, capsys):
    """As after SLURM has requeued a job, whose old node is gone and has not told the file server."""
    tries = iter([False, False, not lives, not lives])
    monkeypatch.setattr(run_lock.Lock, "try_acquire", lambda self: next(tries))
    owner = run_lock.Owner("node7", 4242, "2026-01-01 10:00:00", "training A", "815", "elsewhere")
    monkeypatch.setattr(run_lock.Lock, "owner", lambda self: owner)
    monkeypatch.setattr(run_lock, "POLL", 0.01)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.0 if lives else 60.0)
    if lives:
        with pytest.raises(FolderInUse, match=r"node7, SLURM job 815, .*scancel 815"), alone_in(str(tmp_path), "b"):
            pass
    else:
        with alone_in(str(tmp_path), "b"):
            assert "held by process 4242 on node7" in capsys.readouterr().out


def plans(**ssl) -> dict:
    entries = {"patch_size": [32, 32, 32], "batch_size": 2, "spacing": [1, 1, 1], "architecture": {}, "ssl": ssl}
    return {"dataset_name": "Dataset001_A", "plans_name": "P", "configurations": {"3d_fullres": entries}}


def test_differences_are_those_that_change_the_network():
    held = plans(num_epochs=5, seed=0, accumulate=2, mae={"mask_ratio": 0.6})
    assert (
        differences(held, plans(num_epochs=5, mae={"mask_ratio": 0.6}, voco={"projector_dim": 8}), "3d_fullres", "mae")
        == []
    )
    asked = plans()
    asked["configurations"]["3d_fullres"]["patch_size"] = [48, 48, 48]
    assert differences(held, asked, "3d_fullres", "mae") == [
        "mae.mask_ratio: 0.6 there, 0.75 asked for",
        "num_epochs: 5 there, the default asked for",
        "patch_size: [32, 32, 32] there, [48, 48, 48] asked for",
    ]


def test_weights_a_run_started_from_are_compared_where_they_are_known():
    held, asked = plans(), plans()
    note_weights(asked, "/home/somebody/mae.pth")
    assert differences(held, asked, "3d_fullres", "mae") == []
    note_weights(held, None)
    found = differences(held, asked, "3d_fullres", "mae")
    assert found == ["pretrained_weights: none there, mae.pth asked for"]
    with pytest.raises(SettingsError, match=r"mae.pth asked for.*nnUNetv2_pretrain 4 --continue.*--run-name NAME"):
        refuse_differences("/results", found, "nnUNetv2_pretrain 4")


def test_name_of_a_run_may_not_break_the_names_of_folders():
    from nnunet_ssl.cli.pretrain_flags import build_parser, check_flags

    for name in ("a__b", "../x", "a b", "", "_a"):
        with pytest.raises(ValueError, match="--run-name"):
            check_flags(build_parser().parse_args(["4", "--run-name", name]))
    check_flags(build_parser().parse_args(["4", "--run-name", "trial-2_b.1"]))
    assert Path("SSLMAETrainer__P_trial__3d_fullres").name.split("__") == ["SSLMAETrainer", "P_trial", "3d_fullres"]


def test_what_ends_in_an_error_before_anything_was_written_leaves_no_folder(tmp_path):
    folder = tmp_path / "Dataset004_A" / "SSLMAETrainer__PLANS__3d_fullres" / "fold_all"
    folder.parents[1].mkdir()
    with pytest.raises(SettingsError), alone_in(str(folder), "training A"):
        raise SettingsError
    assert list(folder.parents[1].iterdir()) == []
    with pytest.raises(FileExistsError), alone_in(str(folder), "training A"):
        (folder / "training_log.txt").mkdir() or (folder / "training_log.txt").mkdir()
    assert [path.name for path in folder.iterdir()] == ["training_log.txt"]
    with alone_in(str(folder.with_name("fold_0")), "training A"):
        pass
    assert folder.with_name("fold_0").is_dir()
