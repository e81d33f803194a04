"""report.html of a run: what it says in every state, from the folder alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnunet_ssl.errors import BadFile
from nnunet_ssl.report import attempt
from nnunet_ssl.report.run_page import MAX_PREVIEWS, write_report
from nnunet_ssl.trainers.loop.log_lines import command
from nnunet_ssl.trainers.loop.previews import update_report
from tests.unit.test_report_page import Reader

SUMMARY = """Pre-training
  data:        Dataset012_<b>, 3d_fullres of Plans, fold all
  task:        mae: mask_ratio=0.75
  command:     nnUNetv2_pretrain 12 --method mae

"""
# nnU-Net ends its lines with a space.
EPOCH = "2026-01-01 12:{minute:02d}:00.000000: Epoch {epoch}/8: training loss 1.0, validation loss 0.9; 60 s{left} \n"
STOP = "2026-01-01 12:30:00.000000: SIGTERM received: stopped in epoch 3 after 5 of 8 iterations, saved in x.pth. Again. \n"
DONE = "2026-01-01 12:40:00.000000: Validation complete: 1 cases, loss 0.5000. Pictures in x \n"
WARNING = "2026-01-01 12:00:00.000000: WARNING: too few images \n"


def epochs(first: int, last: int) -> str:
    return "".join(
        EPOCH.format(minute=n, epoch=n, left=f", about {8 - n} min 0 s left" if n < 8 else "")
        for n in range(first, last + 1)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two epochs behind it."""
    run = tmp_path / "Dataset012_X" / "SSLMAETrainer__Plans__3d_fullres" / "fold_all"
    (run / "previews").mkdir(parents=True)
    for name in ("progress", "previews/epoch_0001", "previews/epoch_0002"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(run / f"{name}.png")
    log(run, 1, SUMMARY + WARNING + WARNING + epochs(1, 2))
    return run


def log(run: Path, number: int, text: str) -> None:
    (run / f"training_log_2026_01_0{number}_12_00_00.txt").write_text(text, encoding="utf-8")


def read(run: Path) -> tuple[str, Reader]:
    html = write_report(run).read_text(encoding="utf-8")
    reader = Reader()
    reader.VOID = reader.VOID | {"input"}  # type: ignore[misc]
    reader.feed(html)
    assert reader.open == []
    return html, reader


def test_a_running_run(folder: Path) -> None:
    _, reader = read(folder)
    for text in (
        "Dataset012_X: SSLMAETrainer, fold all",
        "Running when",
        "2 of 8 epochs done, about 6 min 0 s left",
        "Epoch 2/8:",
    ):
        assert text in reader.text
    assert "WARNING: too few images (2 times)" in reader.text
    assert "nnUNetv2_pretrain 12 --method mae" in reader.text
    assert "Dataset012_<b>" in reader.text  # escaped
    news = next(a for tag, a in reader.tags if a.get("id") == "news")
    assert news["data-patience"] == "240"
    assert [a["alt"] for tag, a in reader.tags if tag == "img"][1:] == ["Epoch 2", "Epoch 1"]
    assert next(a for tag, a in reader.tags if tag == "input")["max"] == "1"


def test_needs_nothing_from_elsewhere_and_knows_the_dark(folder: Path) -> None:
    html, reader = read(folder)
    assert not re.search(r"https?:|url\(|@import|<link|src=\"(?!data:image/png;base64,)", html)
    assert {tag for tag, a in reader.tags if "href" in a} == set()
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_a_stopped_and_a_continued_run(folder: Path) -> None:
    log(folder, 1, SUMMARY + epochs(1, 2) + STOP)
    html, reader = read(folder)
    assert "Stopped: SIGTERM received: stopped in epoch 3" in reader.text
    assert 'id="news"' not in html
    log(folder, 2, SUMMARY + epochs(3, 3))
    assert "Running when this page was written: 3 of 8 epochs done" in read(folder)[1].text


def test_a_finished_run(folder: Path) -> None:
    log(folder, 1, SUMMARY + epochs(1, 8) + DONE)
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").write_text(
        json.dumps({"mean": {"loss": 0.5}, "cases": {"a": {"loss": 0.5}}})
    )
    html, reader = read(folder)
    assert "Finished: 8 of 8 epochs" in reader.text
    assert "0.5000" in reader.text
    assert f"nnUNetv2_finetune ID -pretrained_weights {folder.resolve()}/checkpoint_final.pth" in reader.text
    assert 'id="news"' not in html


def test_a_run_that_has_just_begun_and_one_with_many_previews(folder: Path) -> None:
    log(folder, 1, SUMMARY)
    assert "no epoch yet" in read(folder)[1].text
    for n in range(3, 60):
        shutil.copy(folder / "progress.png", folder / "previews" / f"epoch_{n:04d}.png")
    shown = [a["alt"] for tag, a in read(folder)[1].tags if tag == "img"][1:]
    assert len(shown) == MAX_PREVIEWS
    assert (shown[0], shown[-1]) == ("Epoch 59", "Epoch 1")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"holds no training_log\*.txt"):
        write_report(tmp_path)
    log(tmp_path, 1, "something else\n")
    with pytest.raises(BadFile, match="no log of a pre-training"):
        write_report(tmp_path)


def test_the_command_that_continues() -> None:
    assert command(["/x/nnUNetv2_pretrain", "4", "--name", "a b"]) == {"command": "nnUNetv2_pretrain 4 --name 'a b'"}
    assert command(["nnUNetv2_train", "4", "3d_fullres"]) == {"command": "nnUNetv2_train 4 3d_fullres --c"}
    assert command(["nnUNetv2_train", "4", "--c"]) == {"command": "nnUNetv2_train 4 --c"}
    assert command(["/x/script.py"]) == {}


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_moves_the_slider_and_tells_of_old_news(folder: Path) -> None:
    """Run with stand-ins for what a browser gives it: five lines of a document."""
    script = re.findall(r"<script>(.*?)</script>", read(folder)[0], re.DOTALL)[0]
    stage = """
const figure = name => ({name, shown: false, classList: {toggle(_, on) { figure.all[name].shown = on; }}});
figure.all = {}; for (const n of ["two", "one"]) figure.all[n] = figure(n);
const range = {min: "0", max: "1", value: "1", addEventListener(_, f) { this.moved = f; }};
const box = {querySelector: () => range, querySelectorAll: () => [figure.all.two, figure.all.one]};
const news = {dataset: {written: "0", patience: "60"}, text: "", append(t) { this.text += t; }};
const document = {documentElement: {classList: {add() {}}}, querySelectorAll: () => [box], getElementById: () => news};
const location = {hash: "", reload() {}}, history = {replaceState(_, __, u) { this.at = u; }};
const setTimeout = () => {};
"""
    play = """
const seen = () => Object.values(figure.all).filter(f => f.shown).map(f => f.name).join();
const first = seen(); range.value = "0"; range.moved();
console.log(JSON.stringify([first, seen(), history.at, news.text]));
"""
    done = subprocess.run(
        ["node", "-e", stage + "{" + script + "}" + play], capture_output=True, text=True, timeout=60, check=True
    )
    first, moved, address, text = json.loads(done.stdout)
    assert (first, moved, address) == ("two", "one", "#slide=0")
    assert "the run has ended or was killed" in text


def test_a_page_that_cannot_be_written_costs_a_line_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "_told", set())
    said: list[str] = []
    run: Any = SimpleNamespace(
        output_folder=str(tmp_path), log_file=str(tmp_path / "none.txt"), print_to_log_file=said.append
    )
    for _ in range(3):
        update_report(run)
    assert len(said) == 1
    assert said[0].startswith("WARNING: report.html cannot be written, the work goes on without: FileNotFoundError: ")


def test_the_command_makes_the_page_again(folder: Path, run_command: Any, tmp_path: Path) -> None:
    again = ["python", "-m", "nnunet_ssl.cli.report"]
    assert run_command([*again, folder]).stdout.strip() == str(folder / "report.html")
    assert "Running when this page was written" in (folder / "report.html").read_text(encoding="utf-8")
    refused = run_command([*again, tmp_path], check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("nnUNetv2_pretrain_report: ")
    assert len(refused.stderr.splitlines()) == 1
