from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_ssl.demo import run
from nnunet_ssl.demo.data import write_demo_datasets
from nnunet_ssl.demo.job import COMPARISON, PRETRAINING, QUICK, RAW, demo_steps
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
        seconds = run_steps([first, python("open('second', 'w')", "second")], tmp_path, {"DEMO_X": "value"})
        log = (tmp_path / "logs" / "01_first.log").read_text()
        assert f"value {tmp_path}" in log
        assert log.startswith("$ python -c")
        assert (tmp_path / "second").exists()
        assert list(seconds) == ["first", "second"]
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


def test_names_and_order() -> None:
    steps = demo_steps(QUICK, 0, "cpu")
    assert [step.name for step in steps] == ["data", "pretrain", "compare"]
    assert f"-pretrained_weights {PRETRAINING}/checkpoint_final.pth" in steps[2].line


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What of the commands' files the page is made from."""
    write_demo_datasets(tmp_path / RAW, 0, 1, 1, 1)
    for name in ("progress.png", "previews/epoch_0001.png", "previews/epoch_0002.png", "validation/scan_000.png"):
        (tmp_path / PRETRAINING / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / PRETRAINING / name)
    (tmp_path / COMPARISON).mkdir()
    summary = {"answer": ["Pre-training (mae) helped: by so much."], "cautions": ["One seed."]}
    (tmp_path / COMPARISON / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_page_tells_what_the_files_say(finished: Path) -> None:
    steps = demo_steps(QUICK, 0, "cpu")
    seconds = {step.name: 65.0 for step in steps}
    page = write_report(finished, QUICK, 0, "cpu", steps, run.environment(finished), seconds, 800.0)
    html = page.read_text(encoding="utf-8")
    assert page == finished / "report.html"
    assert not re.search(r'(src|href)="https?:', html)
    assert html.count("data:image/png;base64,") == 1 + 1 + 3
    assert "Pre-training (mae) helped: by so much." in html
    assert "One seed." in html
    assert "nnUNetv2_pretrain 901 --method mae" in html
    assert "nnUNetv2_pretrain_compare 902 -pretrained_weights" in html
    assert "<td>everything</td><td>13:20</td>" in html
