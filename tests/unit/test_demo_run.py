from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from nnunet_ssl.demo import run
from nnunet_ssl.demo.data import LABELLED, UNLABELLED, write_demo_datasets
from nnunet_ssl.demo.job import (
    PLANS_FILE,
    QUICK,
    RAW,
    TRAINERS,
    demo_steps,
    finetune_block,
    prediction_folder,
    run_folder,
)
from nnunet_ssl.demo.report import write_report
from nnunet_ssl.demo.steps import Step, clock, find_program, run_steps
from nnunet_ssl.errors import DemoError


def python(code: str, name: str = "step") -> Step:
    return Step(name, f"Do {name}", ("python", "-c", code))


class TestFolder:
    def test_new_empty_and_own_folders_are_taken(self, tmp_path: Path) -> None:
        folder = tmp_path / "deep" / "demo"
        run.prepare_folder(folder)
        (folder / "logs").mkdir()
        (folder / "report.html").write_text("old")
        (folder / "notes.txt").write_text("mine")
        run.prepare_folder(folder)
        assert sorted(p.name for p in folder.iterdir()) == [run.MARKER, "notes.txt"]

    def test_a_folder_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "nnUNet_raw").mkdir()
        (tmp_path / "nnUNet_raw" / "precious").write_text("data")
        with pytest.raises(DemoError, match="left alone"):
            run.prepare_folder(tmp_path)
        assert (tmp_path / "nnUNet_raw" / "precious").read_text() == "data"
        assert not (tmp_path / run.MARKER).exists()
        with pytest.raises(DemoError, match="is a file"):
            run.prepare_folder(tmp_path / "nnUNet_raw" / "precious")

    def test_links_are_removed_and_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "precious").write_text("data")
        run.prepare_folder(tmp_path / "demo")
        (tmp_path / "demo" / "nnUNet_raw").symlink_to(tmp_path / "data")
        run.prepare_folder(tmp_path / "demo")
        assert (tmp_path / "data" / "precious").read_text() == "data"
        assert not (tmp_path / "demo" / "nnUNet_raw").exists()

    def test_main_says_why_it_stops(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "x").write_text("")
        assert run.main(["--output", str(tmp_path), "--quick"]) == 1
        assert "left alone" in capsys.readouterr().err


class TestSteps:
    def test_commands_run_in_the_folder_with_the_variables_and_a_log(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = python("import os; print(os.environ['DEMO_X'], os.getcwd())", "first")
        edit = Step("edit", "Edit", edit=lambda folder: (folder / "edited").touch() or None, shown=("touch it",))
        seconds = run_steps([first, edit], tmp_path, {"DEMO_X": "value"})
        log = (tmp_path / "logs" / "01_first.log").read_text()
        assert f"value {tmp_path}" in log
        assert log.startswith("$ python -c")
        assert (tmp_path / "edited").exists()
        assert list(seconds) == ["first", "edit"]
        assert re.search(r"\[ 1/2\] Do first: 0:0\d", capsys.readouterr().out)

    def test_a_failure_shows_the_last_lines_and_the_log(self, tmp_path: Path) -> None:
        failing = python("for i in range(100): print('line', i)\nraise SystemExit(3)", "bad")
        with pytest.raises(DemoError) as error:
            run_steps([failing, python("open('later', 'w')")], tmp_path, {})
        assert "exit code 3" in str(error.value)
        assert "line 99" in str(error.value)
        assert "line 80" not in str(error.value)
        assert str(tmp_path / "logs" / "01_bad.log") in str(error.value)
        assert not (tmp_path / "later").exists()

    def test_programs_are_those_of_this_python(self) -> None:
        assert find_program("python") == sys.executable
        with pytest.raises(DemoError, match="pip install nnunet_ssl"):
            find_program("nnUNetv2_that_is_not_there")

    def test_clock(self) -> None:
        assert [clock(s) for s in (0.4, 61.9, 3601)] == ["0:00", "1:01", "60:01"]


class TestJob:
    def test_names_and_order(self) -> None:
        names = [step.name for step in demo_steps(QUICK, 0, "cpu")]
        assert len(names) == len(set(names)) == 12
        assert names[:2] == ["data", "pretrain"]
        assert names[-3:] == ["train_fine-tuned", "predict_fine-tuned", "evaluate_fine-tuned"]

    def test_the_two_trainings_differ_in_start_alone(self) -> None:
        steps = {step.name: step.lines[0] for step in demo_steps(QUICK, 0, "cpu")}
        scratch = steps["train_from_scratch"]
        start = f" -pretrained_weights {run_folder(UNLABELLED, 'SSLMAETrainer')}/checkpoint_final.pth"
        finetune = scratch.replace("SSLScratchTrainer", "SSLFinetuneTrainer").replace(" -device", start + " -device")
        assert steps["train_fine-tuned"] == finetune

    def test_the_edit_adds_to_the_plans(self, tmp_path: Path) -> None:
        plans = {"configurations": {"3d_fullres": {"batch_size": 2, "finetune": {"transfer": "encoder"}}}}
        (tmp_path / PLANS_FILE).parent.mkdir(parents=True)
        (tmp_path / PLANS_FILE).write_text(json.dumps(plans))
        (step,) = (step for step in demo_steps(QUICK, 7, "cpu") if step.edit)
        assert step.edit is not None
        step.edit(tmp_path)
        configuration = json.loads((tmp_path / PLANS_FILE).read_text())["configurations"]["3d_fullres"]
        assert configuration == {"batch_size": 2, "finetune": {"transfer": "encoder", **finetune_block(QUICK, 7)}}

    def test_the_block_is_one_that_fine_tuning_reads(self) -> None:
        from nnunet_ssl.settings.blocks import FinetuneSettings, read_config

        settings = read_config(FinetuneSettings, finetune_block(QUICK, 7), "here")
        assert (settings.num_epochs, settings.seed) == (QUICK.finetuning_epochs, 7)


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    return 2 * float((reference & prediction).sum()) / float(reference.sum() + prediction.sum())


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What the commands leave behind: predictions that are the truth, shifted further for "from scratch"."""
    write_demo_datasets(tmp_path / RAW, 0, 1, 1, 3)
    truth_folder = tmp_path / RAW / LABELLED / "labelsTs"
    for shift, run_name in ((3, "from scratch"), (1, "fine-tuned")):
        folder = tmp_path / prediction_folder(run_name)
        folder.mkdir(parents=True)
        cases = []
        for file in sorted(truth_folder.iterdir()):
            truth = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            prediction = np.roll(truth, shift, axis=0)
            sitk.WriteImage(sitk.GetImageFromArray(prediction), str(folder / file.name))
            metrics = {str(label): {"Dice": dice(truth == label, prediction == label)} for label in (1, 2)}
            cases.append({"reference_file": str(file), "prediction_file": "p", "metrics": metrics})
        (folder / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
        trained = tmp_path / run_folder(LABELLED, TRAINERS[run_name])
        trained.mkdir(parents=True)
        logging = {"train_losses": [1.0, 0.5], "mean_fg_dice": [0.1, 0.2]}
        torch.save({"logging": logging, "network_weights": {}}, trained / "checkpoint_final.pth")
    count = {"loaded": 1200, "adapted": 0, "fresh": 0, "left_out": 0}
    report = {"groups": {"encoder": count, "heads": dict.fromkeys(count, 0)}}
    (trained / "pretrained_weights.json").write_text(json.dumps(report))
    pretrained = tmp_path / run_folder(UNLABELLED, "SSLMAETrainer")
    for name in ("progress.png", "previews/epoch_0001.png", "previews/epoch_0002.png", "validation/scan_000.png"):
        (pretrained / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(pretrained / name)
    return tmp_path


def test_page_tells_what_the_files_say(finished: Path) -> None:
    steps = demo_steps(QUICK, 0, "cpu")
    seconds = {step.name: 65.0 for step in steps}
    page = write_report(finished, QUICK, 0, "cpu", steps, run.environment(finished), seconds, 800.0)
    html = page.read_text(encoding="utf-8")
    assert page == finished / "report.html"
    assert not re.search(r'(src|href)="https?:', html)
    assert html.count("data:image/png;base64,") == 1 + 1 + 3 + 1 + 3
    assert "Fine-tuned is better than from scratch on these cases" in html
    assert "nnUNetv2_pretrain 901 --method mae" in html
    assert "<td>encoder</td><td>1,200</td>" in html
    assert "<td>heads</td>" not in html
    assert "<td>everything</td><td>13:20</td>" in html
    summary = json.loads((finished / prediction_folder("fine-tuned") / "summary.json").read_text())
    expected = [f"{case['metrics']['2']['Dice']:.3f}" for case in summary["metric_per_case"]]
    assert all(f"<td>{value}</td>" in html for value in expected)


def test_page_never_claims_a_gain_that_is_not_there(finished: Path) -> None:
    for run_name, values in (("from scratch", (0.5, 0.6, 0.7)), ("fine-tuned", (0.7, 0.5, 0.65))):
        file = finished / prediction_folder(run_name) / "summary.json"
        summary = json.loads(file.read_text())
        for case, value in zip(summary["metric_per_case"], values, strict=True):
            case["metrics"] = {"1": {"Dice": value}, "2": {"Dice": value}}
        file.write_text(json.dumps(summary))
    steps = demo_steps(QUICK, 0, "cpu")
    seconds = {step.name: 1.0 for step in steps}
    html = write_report(finished, QUICK, 0, "cpu", steps, {}, seconds, 12.0).read_text(encoding="utf-8")
    assert html.count("No difference could be shown") == 4
    assert "is better" not in html
    assert "Neither network has learned" not in html


def test_page_says_when_nothing_was_learned(finished: Path) -> None:
    for run_name in TRAINERS:
        file = finished / prediction_folder(run_name) / "summary.json"
        summary = json.loads(file.read_text())
        for case in summary["metric_per_case"]:
            case["metrics"] = {"1": {"Dice": 0.02}, "2": {"Dice": 0.03}}
        file.write_text(json.dumps(summary))
    steps = demo_steps(QUICK, 0, "cpu")
    seconds = {step.name: 1.0 for step in steps}
    html = write_report(finished, QUICK, 0, "cpu", steps, {}, seconds, 12.0).read_text(encoding="utf-8")
    assert "Neither network has learned the task" in html
