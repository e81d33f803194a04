"""comparison.html and summary.json from the files of a comparison, in every state of these."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from made_comparison import make_comparison
from PIL import Image

from nnunet_ssl.errors import BadFile
from nnunet_ssl.report.comparison import write_report
from nnunet_ssl.report.comparison.folder import Key, read_comparison
from tests.unit.test_report_page import Reader

SMALL = {"datasets": ["Dataset004_Hippocampus"], "labelled": [10], "folds": [0], "seeds": [0], "metrics": ["Dice"]}


def read(folder: Path) -> tuple[Reader, dict]:
    """The page, well nested and without anything from elsewhere, and the summary."""
    html = write_report(folder).read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<link|<script", html)
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    for _, attributes in (tag for tag in reader.tags if tag[0] == "img"):
        content = base64.b64decode(str(attributes["src"]).removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(content)).size[0] > 300
        assert attributes["alt"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return reader, summary


def test_a_whole_comparison_answers_in_its_first_line(tmp_path):
    folder = make_comparison(
        tmp_path, datasets=["Dataset004_Hippocampus", "Dataset007_B"], cases=8, labelled=[10, "all"]
    )
    reader, summary = read(folder)
    assert reader.text.index("Pre-training (mae) helped: mean Dice +0.0") < reader.text.index(
        "Dice: data sets and arms"
    )
    assert summary["answer"][0] in reader.text
    first = summary["metrics"]["Dice"]["overall"][0]
    assert (first["arm"], first["labelled"], first["verdict"], first["cases"]) == ("mae", "10", "helped", 32)
    assert f"{first['difference']:+.3f} with 10 labelled cases" in summary["answer"][0]
    images = [a for tag, a in reader.tags if tag == "img"]
    assert len(images) == 4  # ranks, labelled cases, every case, training
    for heading in ("Ranks", "How many labelled cases", "Every case", "Training", "Cases that gained and lost most"):
        assert heading in reader.text
    assert "no picture, because its image or its labels are not in nnUNet_raw (Dataset004_Hippocampus)" in reader.text
    assert "nnUNetv2_train Dataset004_Hippocampus 3d_fullres 0 -tr SSLFinetuneTrainer" in reader.text
    assert "What was left out" not in reader.text
    assert "Mind:" not in reader.text
    # Everything in numbers: means of all cells, differences of all pairs, ranks.
    metric = summary["metrics"]["NSD"]
    assert (len(metric["means"]), len(metric["differences"]), len(metric["ranks"])) == (12, 8, 2)
    assert not [a for tag, a in reader.tags if a.get("class") == "aside"]  # published numbers are for protocols


def test_numbers_on_the_page_are_those_of_the_scores(tmp_path):
    folder = make_comparison(tmp_path, **SMALL)
    reader, _ = read(folder)
    scores = pd.read_csv(folder / "scores.csv")
    means = scores.groupby(["arm", "case"])["value"].mean().groupby("arm").mean()
    for mean in means:
        assert f"{mean:.3f}" in reader.text
    html = (folder / "comparison.html").read_text(encoding="utf-8")
    assert re.findall(r'<td class="best">([^<]*)', html) == [f"{means.max():.3f}"]


@pytest.mark.parametrize("state", ["not begun", "running", "failed"])
def test_a_comparison_without_scores_has_a_page(tmp_path, state):
    folder = make_comparison(tmp_path, state=lambda key: state, **SMALL)
    reader, summary = read(folder)
    assert summary["cells"] == {"expected": 3, "finished": 0, "failed": 0, "running": 0, "not begun": 0} | {state: 3}
    assert "Nothing can be told yet" in summary["answer"][0]
    assert "No training has scores yet." in reader.text
    assert f"0 of 3 trainings are finished (3 {state})" in reader.text
    if state == "failed":
        assert "mae, 10 labelled, fold 0, seed 0: failed. CUDA out of memory. Use a smaller batch" in reader.text


def test_unfinished_cells_are_left_out_and_named(tmp_path):
    def state(key: Key) -> str:
        if key.arm == "voco":
            return "failed" if key.seed == "1" else "running"
        return "not begun" if key.arm == "mae" and key.seed == "1" else "finished"

    folder = make_comparison(tmp_path, state=state, **{**SMALL, "seeds": [0, 1]})
    (folder / "scores.csv").unlink()  # a cell's own table is enough
    reader, summary = read(folder)
    (row,) = summary["metrics"]["Dice"]["differences"]
    assert (row["arm"], row["seeds"], row["seed_deviation"]) == ("mae", 1, None)
    assert row["left_out"]["only_reference"] == 12
    assert "voco: 1 cell still running" in reader.text
    assert "mae against scratch, not paired: 12 scores of cases that only scratch has (Dice)" in reader.text
    assert "Pre-training (voco): nothing can be told yet" in summary["answer"][1]


def test_dropped_cells_live_on_in_the_table_of_all(tmp_path):
    folder = make_comparison(tmp_path, **SMALL)
    before = read(folder)[1]["metrics"]
    shutil.rmtree(folder / "cells")
    assert read(folder)[1]["metrics"] == before


def test_one_case_and_one_of_everything(tmp_path):
    folder = make_comparison(tmp_path, cases=1, **SMALL)
    reader, summary = read(folder)
    assert "cannot be told with so few cases (1 test case)" in summary["answer"][0]
    assert "no interval" in summary["answer"][0]
    assert "Every training ran with one seed" in reader.text


def test_names_and_values_that_csv_readers_mistake(tmp_path):
    """A case called NA, a structure called nan, a score that is empty, a distance that is infinite."""
    folder = make_comparison(tmp_path, names=["NA", "007", "1e3"], structures=("nan", "b"), **SMALL)
    table = pd.read_csv(folder / "scores.csv", dtype=str, keep_default_na=False)
    table.loc[(table["case"] == "007") & (table["structure"] == "b"), "value"] = ""
    for _, rows in table.groupby("arm"):
        rows.to_csv(folder / Key(*rows.iloc[0][list(Key._fields)]).folder() / "scores.csv", index=False)
    scores = read_comparison(folder).scores
    assert set(scores["case"]) == {"NA", "007", "1e3"}
    assert set(scores["structure"]) == {"nan", "b"}
    assert scores["value"].isna().sum() == 3
    assert read(folder)[1]["metrics"]["Dice"]["differences"][0]["cases"] == 3


def test_everything_foreign_is_escaped(tmp_path):
    folder = make_comparison(tmp_path, effects={"scratch": 0.0, "<b>&mae": 0.05}, structures=("<i>", "b"), **SMALL)
    reader, _ = read(folder)
    assert "Pre-training (<b>&mae)" in reader.text
    assert not {"b", "i"} & {tag for tag, _ in reader.tags}


def change_cell(folder: Path, arm: str, **values) -> None:
    file = folder / Key("Dataset004_Hippocampus", arm, "0", "0", "10").folder() / "cell.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_arms_that_differ_in_more_than_weights_are_named(tmp_path):
    folder = make_comparison(tmp_path, **SMALL)
    assert read(folder)[1]["differences_in_setup"] == []
    change_cell(folder, "mae", num_epochs=300, training_cases=["train_0", "other"], initial_lr=1e-4)
    change_cell(folder, "voco", trainer="nnUNetTrainer", versions={"torch": "2.9"}, plans="nnUNetPlans")
    reader, summary = read(folder)
    said = "\n".join(summary["differences_in_setup"])
    assert "mae and scratch differ in the number of epochs (300 and 30), on Dataset004_Hippocampus" in said
    assert "mae and scratch differ in the training cases (1 of 2 are others)" in said
    assert "voco and scratch differ in the trainer (nnUNetTrainer and SSLScratchTrainer)" in said
    assert "voco and scratch differ in the plans (nnUNetPlans and nnUNetPlans_mae)" in said
    assert "voco and scratch differ in versions of packages (torch)" in said
    assert len(summary["differences_in_setup"]) == 5
    assert reader.text.count("Mind:") == 5
    change_cell(folder, "voco", warnings=["The images tested on were seen."])
    assert "Mind: The images tested on were seen." in read(folder)[0].text


def test_plans_are_compared_by_what_they_hold(tmp_path):
    """Plans made for other weights have another name; the networks and images may be the same all the same."""
    folder = make_comparison(tmp_path, **SMALL)
    change_cell(folder, "mae", plans="nnUNetFinetunePlans_mae")
    change_cell(folder, "voco", plans="nnUNetFinetunePlans_voco")
    own = {"patch_size": [40, 56, 40], "data_identifier": "a", "finetune": {"initial_lr": 1e-2, "num_epochs": 30}}
    like = {**own, "data_identifier": "b", "finetune": {"initial_lr": 1e-3, "num_epochs": 30, "transfer": "encoder"}}
    arms = {"scratch": own, "mae": like, "voco": {**like, "patch_size": [64, 64, 64]}}
    plans = {
        arm: {"plans_name": arm, "configurations": {"3d_fullres": configuration}} for arm, configuration in arms.items()
    }
    (folder / "datasets").mkdir()
    file = folder / "datasets" / "Dataset004_Hippocampus.json"
    file.write_text(json.dumps({"configuration": "3d_fullres", "plans": plans}))
    (said,) = read(folder)[1]["differences_in_setup"]
    assert said.startswith("voco and scratch differ in the plans (patch size), on Dataset004_Hippocampus")


def test_a_cell_that_cannot_be_read_is_a_failed_one(tmp_path):
    folder = make_comparison(tmp_path, **SMALL)
    (folder / "scores.csv").unlink()
    places = [
        folder / Key("Dataset004_Hippocampus", arm, "0", "0", "10").folder() for arm in ("scratch", "mae", "voco")
    ]
    (places[1] / "cell.json").write_text("{")
    (places[2] / "scores.csv").write_text("torn")
    summary = read(folder)[1]
    assert (summary["cells"]["finished"], summary["cells"]["failed"]) == (1, 2)
    assert "voco, 10 labelled, fold 0, seed 0: failed. finished, but scores.csv holds none" in "\n".join(
        summary["left_out"]
    )


def test_other_cells_in_the_folder_count_nowhere(tmp_path):
    folder = make_comparison(tmp_path, **{**SMALL, "seeds": [0, 1]})
    description = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps(description | {"seeds": [0]}))
    summary = read(folder)[1]
    assert summary["cells"]["expected"] == 3
    assert summary["metrics"]["Dice"]["differences"][0]["seeds"] == 1
    assert "mae: 1 cell in the folder, but not asked for by the description" in "\n".join(summary["left_out"])


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"datasets": [], "arms": []}', '{"datasets": [3], "arms": [{}]}', None]
)
def test_a_folder_without_a_description_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(BadFile, match=r"comparison\.json"):
        write_report(tmp_path)


def volume(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(file))


def test_the_extreme_cases_are_shown_with_their_predictions(tmp_path, monkeypatch):
    folder = make_comparison(tmp_path / "c", names=["x", "y", "z"], **SMALL)
    raw = tmp_path / "raw" / "Dataset004_Hippocampus"
    random = np.random.default_rng(0)
    truth = np.zeros((12, 16, 14), np.uint8)
    truth[3:9, 4:12, 3:9] = 1
    for case in "xyz":
        volume(random.normal(size=truth.shape).astype(np.float32), raw / "imagesTr" / f"{case}_0000.nii.gz")
        volume(truth, raw / "labelsTr" / f"{case}.nii.gz")
    labels = {"background": 0, "organ": 1}
    content = {"channel_names": {"0": "T1w"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    monkeypatch.setattr("nnunet_ssl.report.comparison.cases.raw_folder", lambda name: str(tmp_path / "raw" / name))
    reader, _ = read(folder)
    assert "no picture, because its predictions were not kept" in reader.text
    before = sum(tag == "img" for tag, _ in reader.tags)
    for arm in ("scratch", "mae", "voco"):
        place = folder / Key("Dataset004_Hippocampus", arm, "0", "0", "10").folder()
        for case in "xyz":
            volume(truth, place / "predictions" / f"{case}.nii.gz")
    reader, summary = read(folder)
    captions = [str(a["alt"]) for tag, a in reader.tags if tag == "img"]
    assert len(captions) == before + 2
    assert any("gained most with" in text for text in captions)
    assert any("lost most with" in text for text in captions)
    rows = summary["metrics"]["Dice"]["differences"]
    most = max(d for row in rows for d in row["by_case"].values())
    assert any(f"{most:+.3f}" in text for text in captions)
    # The same from where the comparison noted its images and labels to be.
    monkeypatch.undo()
    base = tmp_path / "preprocessed"
    shutil.copytree(raw / "labelsTr", base / "gt_segmentations")
    images = {case: [str(raw / "imagesTr" / f"{case}_0000.nii.gz")] for case in "xyz"}
    noted = {"base": str(base), "dataset_json": content, "images": images}
    (folder / "datasets").mkdir()
    (folder / "datasets" / "Dataset004_Hippocampus.json").write_text(json.dumps(noted))
    assert sum(tag == "img" for tag, _ in read(folder)[0].tags) == before + 2
    # What cannot be read costs a picture, not the page.
    for file in folder.glob("cells/*/*/*/*/*/predictions/*"):
        file.write_bytes(b"torn")
    torn, _ = read(folder)
    assert sum(tag == "img" for tag, _ in torn.tags) == before
    assert torn.text.count("no picture. ") == 2
