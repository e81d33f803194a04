"""What was preprocessed follows what is there: changed, replaced, removed, corrected, copied, half written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.corpus.left_out import FILE
from nnunet_ssl.corpus.stamps import stamp
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.fingerprint import SSLFingerprintExtractor
from nnunet_ssl.planners.prepare import prepare_corpus
from nnunet_ssl.planners.sharing.forget import check, forget
from nnunet_ssl.planners.sharing.made_from import Origin, Part, read_origins, write_origins
from nnunet_ssl.planners.ssl_planner import SSLPlannerResEncTiny

PLANS, DATA = "nnUNetSSLResEncTinyPlans", "nnUNetSSLResEncTinyPlans_3d_fullres"
CASES = {f"tiny_{n:02d}" for n in range(4)}


class DataSet:
    """A tiny data set, raw and preprocessed."""

    def __init__(self, raw: Path) -> None:
        self.raw, self.base = raw, raw.parents[1] / "nnUNet_preprocessed" / raw.name
        self.folder = self.base / DATA

    def image(self, case: str) -> Path:
        return self.raw / "imagesTr" / f"{case}_0000.nii.gz"

    def label(self, case: str) -> Path:
        return self.raw / "labelsTr" / f"{case}.nii.gz"

    def prepare(self, **kwargs: Any) -> None:
        prepare_corpus([self.raw.name], SSLPlannerResEncTiny, num_processes=0, **kwargs)

    def made(self) -> dict[str, tuple[int, int]]:
        """Stamp of the finished cases: which is another one when the case was made anew."""
        return {p.stem: stamp(str(p)) for p in self.folder.glob("*.pkl")}

    def anew(self, before: dict[str, tuple[int, int]]) -> set[str]:
        now = self.made()
        return {case for case in now if now[case] != before.get(case)}

    def edit(self, **changes: Any) -> None:
        file = self.raw / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def data(nnunet_folders: dict[str, str], tiny_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> DataSet:
    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    initialise = SSLFingerprintExtractor.__init__

    def draw_fewer(self: SSLFingerprintExtractor, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e5

    monkeypatch.setattr(SSLFingerprintExtractor, "__init__", draw_fewer)
    made = DataSet(tiny_dataset(nnunet_folders["nnUNet_raw"], 940))
    made.prepare()
    return made


def write(path: Path, seed: int, shape: tuple[int, ...] = (20, 24, 28), age: float = 0.0) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    sitk.WriteImage(image, str(path))
    if age:
        os.utime(path, (path.stat().st_mtime - age,) * 2)


def test_nothing_changed(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: stamp(str(p)) for p in data.base.rglob("*")}
    capsys.readouterr()
    data.prepare()
    assert {p: stamp(str(p)) for p in data.base.rglob("*")} == before
    assert "4 preprocessed images are there" in capsys.readouterr().out
    assert all(origin.digest for origin in read_origins(str(data.folder / "preprocessing")).values())
    assert "4 of 4 cases are as their files are; 0 are missing" in "\n".join(check(data.raw.name))


@pytest.mark.parametrize("age", [0.0, 3 * 365 * 86400.0])
def test_replaced_images_and_corrected_labels(data: DataSet, age: float, capsys: pytest.CaptureFixture[str]) -> None:
    before = data.made()
    write(data.image("tiny_00"), 1, age=age)
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((20, 24, 28), np.uint8)), str(data.label("tiny_01")))
    if age:
        os.utime(data.label("tiny_01"), (1e9, 1e9))
    told = "\n".join(check(data.raw.name))
    assert "2 cases changed since they were preprocessed and are made anew: tiny_00 (image), tiny_01 (label)" in told
    assert data.made() == before
    data.prepare()
    assert "tiny_00 (image), tiny_01 (label)" in capsys.readouterr().out
    assert data.anew(before) == {"tiny_00", "tiny_01"}
    copy = data.base / "gt_segmentations" / "tiny_01.nii.gz"
    assert copy.read_bytes() == data.label("tiny_01").read_bytes()
    before = data.made()
    data.prepare()
    assert data.made() == before


def test_files_that_were_touched_or_moved_are_read_but_not_made_anew(data: DataSet, capsys: Any) -> None:
    before = data.made()
    os.utime(data.image("tiny_00"), (1e9, 1e9))
    entries = {c: {"images": [str(data.image(c))], "label": str(data.label(c))} for c in sorted(CASES)}
    elsewhere = data.raw / "elsewhere.nii.gz"
    shutil.copyfile(data.image("tiny_01"), elsewhere)
    entries["tiny_01"]["images"] = [str(elsewhere)]
    data.edit(dataset=entries)
    data.prepare()
    assert "the files of 2 cases have another place or time" in capsys.readouterr().out
    assert data.made() == before
    capsys.readouterr()
    data.prepare()
    assert "another place" not in capsys.readouterr().out  # it is known now


def test_removed_images_leave_everything(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    splits = [{"train": sorted(CASES - {"tiny_03"}), "val": ["tiny_03"]}, {"train": ["tiny_03"], "val": ["tiny_00"]}]
    (data.base / "splits_final.json").write_text(json.dumps(splits))
    before = data.made()
    data.image("tiny_03").unlink()
    data.label("tiny_03").unlink()
    assert "1 cases are no longer in Dataset940_Tiny and are dropped: tiny_03" in "\n".join(check(data.raw.name))
    data.prepare()
    assert data.made() == {case: stamp for case, stamp in before.items() if case != "tiny_03"}
    assert not list(data.base.rglob("*tiny_03*"))
    assert "tiny_03" not in (data.base / "splits_final.json").read_text()
    assert "tiny_03" not in (data.folder / "preprocessing" / "made_from.jsonl").read_text()
    assert "1 cases that are no longer there are taken out" in capsys.readouterr().out


def test_an_unusable_image_that_is_replaced_by_an_older_file_is_tried_again(data: DataSet) -> None:
    good = data.image("tiny_02").read_bytes()
    data.image("tiny_02").write_bytes(b"no image")
    data.prepare()
    assert set(data.made()) == CASES - {"tiny_02"}
    data.prepare()
    assert json.loads((data.base / FILE).read_text()).keys() == {"tiny_02"}
    data.image("tiny_02").write_bytes(good)
    os.utime(data.image("tiny_02"), (1e9, 1e9))
    data.prepare()
    assert set(data.made()) == CASES
    assert json.loads((data.base / FILE).read_text()) == {}


def test_edited_plans_count(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    before, file = data.made(), data.base / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    file.write_text(json.dumps(plans))
    assert "all cases are made anew: spacing changed" in "\n".join(check(data.raw.name))
    data.prepare()
    assert "made anew: spacing changed" in capsys.readouterr().out
    assert data.anew(before) == CASES
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    file.write_text(json.dumps(plans))
    data.raw.rename(data.raw.with_name("gone"))
    with pytest.raises(CorpusError, match="made with other settings"):
        data.prepare()


def test_corrected_channel_names_and_labels(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_corpus([940], "SSLPlannerPrimusTiny", num_processes=0)
    data.edit(channel_names={"0": "CT"}, labels={"background": 0, "ball": 1, "more": 2})
    assert "channel_names, labels in dataset.json changed" in "\n".join(check(data.raw.name))
    capsys.readouterr()
    data.prepare()
    told = capsys.readouterr().out
    assert "(MR -> CT)" in told
    for name in (PLANS, "nnUNetSSLPrimusTinyPlans"):  # the other ones too
        plans = json.loads((data.base / f"{name}.json").read_text())
        assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]
    copy = json.loads((data.base / "dataset.json").read_text())
    assert (copy["channel_names"], len(copy["labels"])) == ({"0": "CT"}, 3)
    data.edit(channel_names={"0": "CT", "1": "MR"})
    with pytest.raises(CorpusError, match="2 channels"):
        data.prepare()


def test_cases_without_a_record_are_taken_as_they_are_unless_their_files_are_newer(data: DataSet) -> None:
    for file in data.folder.glob("*.pkl"):
        os.utime(file, (2e9, 2e9))
    os.utime(data.image("tiny_01"), (3e9, 3e9))
    before = data.made()
    (data.folder / "preprocessing" / "made_from.jsonl").unlink(missing_ok=True)
    shutil.rmtree(data.folder / "preprocessing" / "made_from", ignore_errors=True)
    data.prepare()
    assert data.anew(before) == {"tiny_01"}
    before = data.made()
    data.prepare()
    assert data.made() == before


def test_a_folder_that_was_copied_is_not_the_old_one(data: DataSet) -> None:
    for parent in (data.raw.parent, data.base.parent):
        shutil.copytree(parent / data.raw.name, parent / "Dataset941_Copy")
    with pytest.raises(CorpusError, match='"dataset_name": "Dataset941_Copy"'):
        prepare_corpus([941], SSLPlannerResEncTiny, num_processes=0)


@pytest.mark.parametrize("file", [f"{PLANS}.json", "dataset_fingerprint.json", "dataset.json", FILE])
@pytest.mark.parametrize("content", ["", "half"])
def test_torn_files_are_made_anew(data: DataSet, file: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = data.base / file
    whole = path.read_text() if path.exists() else '{"tiny_00": {'
    path.write_text(whole[: int(len(whole) * 0.6)] if content else "")
    if file == "dataset_fingerprint.json":
        (data.base / f"{PLANS}.json").unlink()
    data.prepare()
    assert f"{file} ends in the middle" in capsys.readouterr().out
    assert set(data.made()) == CASES
    assert not path.exists() or json.loads(path.read_text()) == json.loads(whole)


def test_forgetting(data: DataSet) -> None:
    before = data.made()
    with pytest.raises(CorpusError, match="knows no nobody; nothing was removed"):
        forget(data.raw.name, ["tiny_00", "nobody"])
    with pytest.raises(CorpusError, match="separator"):
        forget(data.raw.name, ["../../nnUNet_raw/Dataset940_Tiny/dataset"])
    assert data.made() == before
    told = "\n".join(forget(data.raw.name, ["tiny_00"]))
    assert "1 of them are still in" in told
    assert not list(data.base.rglob("*tiny_00*"))
    data.prepare()
    assert data.anew(before) == {"tiny_00"}
    forget(data.raw.name, None)
    assert not data.folder.exists()
    assert len(list(data.raw.rglob("*.nii.gz"))) == 8  # the user's images
    data.prepare()
    assert set(data.made()) == CASES


def test_labels_are_there_whole_or_not_at_all(data: DataSet) -> None:
    labels = data.base / "gt_segmentations"
    (labels / "tiny_00.nii.gz").write_bytes((labels / "tiny_00.nii.gz").read_bytes()[:50])  # as killed, long ago
    (labels / "tiny_01.nii.gz").unlink()
    data.prepare()
    for case in CASES:
        assert (labels / f"{case}.nii.gz").read_bytes() == data.label(case).read_bytes()


def test_the_line_of_the_last_attempt_counts(tmp_path: Path) -> None:
    state = str(tmp_path)
    image = tmp_path / "a.nii"
    image.touch()
    files = {"images": [str(image)], "label": None}
    Part(state, "dead", {}).begin("a", files)
    first = read_origins(state)["a"]
    image.write_text("other")
    later = Part(state, "a later one", {"a": first})  # sorted before "dead"
    later.begin("a", files)
    later.finish("a", "d1")
    assert read_origins(state)["a"] == Origin([str(image)], None, None, [*stamp(str(image))], "d1", 2)
    with open(later.path, "a") as file:
        file.write('["b",1,["x"')  # killed while writing
    assert read_origins(state).keys() == {"a"}
    write_origins(state, read_origins(state))
    assert not list((tmp_path / "made_from").iterdir())
    assert read_origins(state)["a"].turn == 2


KILL_WHILE_COPYING = """
import os, shutil, signal
count = 0
copy = shutil.copyfile
def half(source, target, *args, **kwargs):
    global count
    count += 1
    if count == 3:
        open(target, "wb").write(open(source, "rb").read()[:40])
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(source, target, *args, **kwargs)
shutil.copyfile = half
"""


def test_with_the_real_commands(data: DataSet, nnunet_folders: dict[str, str], run_command: Callable[..., Any]) -> None:
    """Killed while labels are copied, replaced, looked at, forgotten: each in a fresh process."""
    shutil.rmtree(data.base)
    command = "from nnunet_ssl.cli.pretrain import main; main()"
    flags = ["940", "--backbone", "resenc_tiny", "--preprocess-only", "-np", "1"]
    killed = run_command(["python", "-c", KILL_WHILE_COPYING + command, *flags], nnunet_folders, check=False)
    assert killed.returncode == -signal.SIGKILL
    labels = data.base / "gt_segmentations"
    assert len(list(labels.glob("[!.]*"))) == 2
    again = run_command(["nnUNetv2_pretrain", *flags], nnunet_folders)
    assert {p.name.partition(".")[0] for p in labels.iterdir()} == CASES  # and nothing half
    assert "4 preprocessed images are there" in again.stdout
    write(data.image("tiny_00"), 5)
    looked = run_command(["nnUNetv2_pretrain_corpus", "-d", "940", "--check"], nnunet_folders)
    assert "tiny_00 (image)" in looked.stdout
    gone = run_command(["nnUNetv2_pretrain_corpus", "-d", "940", "--forget", "tiny_00", "tiny_01"], nnunet_folders)
    assert "what was made of 2 cases is removed" in gone.stdout
    assert set(data.made()) == {"tiny_02", "tiny_03"}
    wrong = run_command(["nnUNetv2_pretrain_corpus", "-d", "940", "--forget", "../x"], nnunet_folders, check=False)
    assert wrong.returncode == 1
    assert "separator" in wrong.stderr


def test_an_image_that_exhausts_the_memory_costs_itself_alone(
    nnunet_folders: dict[str, str], tiny_dataset: Callable[..., Path]
) -> None:
    """With -np 1, and a system that kills whoever reads it: fingerprint and preprocessing name it and go on."""
    raw = tiny_dataset(nnunet_folders["nnUNet_raw"], 942, num_cases=3)
    huge = sitk.GetImageFromArray(np.zeros((4, 4, 4), np.uint8))
    sitk.WriteImage(huge, str(raw / "imagesTr" / "huge_0000.nii.gz"))
    dying = """
import os, signal
if __name__ == "__main__":
    from nnunet_ssl.cli.pretrain import main
    main(["942", "--backbone", "resenc_tiny", "--preprocess-only", "-np", "1"])
else:
    import nnunet_ssl.corpus.reading as reading, nnunet_ssl.planners.preprocessor as preprocessor
    import nnunet_ssl.planners.fingerprint as fingerprint
    read = reading.read_case
    def exhausted(reader, images, *args, **kwargs):
        if "huge" in images[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(reader, images, *args, **kwargs)
    fingerprint.read_case = preprocessor.read_case = exhausted
"""
    script = raw.parent / "run.py"
    script.write_text(dying)
    environment = {**os.environ, **nnunet_folders}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    base = Path(nnunet_folders["nnUNet_preprocessed"]) / raw.name
    assert json.loads((base / FILE).read_text()).keys() == {"huge"}
    assert "huge: it killed the process that worked on it, with nothing else running (SIGKILL" in done.stdout
    assert len(list((base / DATA).glob("*.pkl"))) == 3


def test_what_cannot_be_written_can_wait(data: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A file was touched, and nnUNet_preprocessed is read-only: what is there does."""
    os.utime(data.image("tiny_00"), (1e9, 1e9))
    monkeypatch.setattr("nnunet_ssl.planners.prepare.is_writable", lambda _: False)
    before = {p: stamp(str(p)) for p in data.base.rglob("*")}
    data.prepare()
    assert {p: stamp(str(p)) for p in data.base.rglob("*")} == before
    assert "4 preprocessed images are there" in capsys.readouterr().out


def test_on_a_file_system_without_locks(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are folders there; nothing takes them for data sets or for preprocessed images."""
    monkeypatch.setenv("NNUNET_SSL_LOCKS", "heartbeat")
    shutil.rmtree(data.base)
    for _ in range(2):
        prepare_corpus([940], SSLPlannerResEncTiny, num_processes=0)
    assert set(data.made()) == CASES
    forget("Dataset940_Tiny", ["tiny_00"])
    prepare_corpus([940], SSLPlannerResEncTiny, num_processes=0)
    assert set(data.made()) == CASES
    assert [p.name for p in data.base.parent.glob("Dataset*")] == ["Dataset940_Tiny"]


def test_an_import_renames_channels_and_prunes(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    from nnunet_ssl.cli.import_corpus import main

    scans = data.raw.parents[1] / "scans"
    shutil.copytree(data.raw / "imagesTr", scans)
    main(["-i", str(scans), "-d", "943", "-n", "Scans", "-np", "1"])
    prepare_corpus([943], SSLPlannerResEncTiny, num_processes=0)
    with pytest.raises(SystemExit):
        main(["-i", str(scans), "-d", "943", "--channel-name", "CT", "MR", "-np", "1"])
    assert "names 2 channels (CT, MR), the images have 1" in capsys.readouterr().err
    main(["-i", str(scans), "-d", "943", "--channel-name", "CT", "-np", "1"])
    assert "-> CT. All images are preprocessed anew" in capsys.readouterr().out
    plans, _ = prepare_corpus([943], SSLPlannerResEncTiny, num_processes=0)
    assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]
    folder = data.base.parent / "Dataset943_Scans"
    (scans / "tiny_02_0000.nii.gz").unlink()
    assert len(list(folder.rglob("*.pkl"))) == 4
    main(["-i", str(scans), "-d", "943", "--prune", "-np", "1"])
    assert "what was made of 1 cases is removed" in capsys.readouterr().out
    assert len(list(folder.rglob("*.pkl"))) == 3
    main(["-i", str(scans), "-d", "943", "-np", "1"])
    assert "-> CT" not in capsys.readouterr().out  # the name stays
