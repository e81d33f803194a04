"""A comparison's description, its cells, nested few labels, surface scores against slow twins, and the flags that describe it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_ssl.cli import compare_flags
from nnunet_ssl.cli.compare import build_parser
from nnunet_ssl.comparison import overview
from nnunet_ssl.comparison import work as work_module
from nnunet_ssl.comparison.cell_process import record_failure
from nnunet_ssl.comparison.cells import FINISHED, RECORD, Cell, cells_of, settings_of
from nnunet_ssl.comparison.description import parse_description, read_description, write_description
from nnunet_ssl.comparison.evaluation import COLUMNS, join_scores, scores_of, structure_names, write_scores
from nnunet_ssl.comparison.seen import corpus_of, seen_in_pretraining
from nnunet_ssl.comparison.subsets import labelled_subset, require_folds
from nnunet_ssl.comparison.surfaces import surface, surface_distances, surface_scores
from nnunet_ssl.comparison.work import How, require_same_settings, run_in_process, work
from nnunet_ssl.errors import BadFile, CorpusError, FolderTaken, SettingsError
from nnunet_ssl.files.participants import Participant
from nnunet_ssl.signals import Stopped

ARMS = [{"name": "scratch", "trainer": "SSLScratchTrainer"}, {"name": "mae", "weights": "mae.pth"}]
CONTENT = {"format": 1, "datasets": [{"dataset": "Dataset004_Tiny"}, {"dataset": "Dataset005_Tiny"}], "arms": ARMS}


def described(**changes):
    return parse_description({**CONTENT, **changes}, "comparison.json")


# Description


def test_what_is_written_is_read(tmp_path):
    description = described(folds=[0, 3], seeds=[0, 1], labelled=[10, "all"], epochs=5, metrics=["Dice", "HD95"])
    write_description(description, tmp_path)
    assert read_description(tmp_path) == description
    assert read_description(tmp_path / "elsewhere") is None
    assert description.reference.name == "scratch"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": [1]}, "Did you mean 'seeds'"),
        ({"arms": [{"name": "mae", "weight": "x"}]}, "arms[0]: unknown setting 'weight'. Did you mean 'weights'"),
        ({"arms": []}, "arms must be a list of at least 1"),
        ({"arms": [{"name": "a/b", "plans": "P"}]}, "'a/b' cannot name an arm"),
        ({"arms": [*ARMS, {"name": "MAE", "weights": "y"}]}, "arms names mae twice"),
        ({"arms": [{"name": "scratch"}]}, "no arm with weights to take them from"),
        ({"arms": [*ARMS, {"name": "twin", "like": "mea"}]}, "Did you mean mae?"),
        ({"arms": [{"name": "x", "weights": "y", "plans": "P", "adapt": "like_dataset"}]}, "Leave one of them out"),
        ({"folds": [0, 0], "seeds": [1, 1]}, "folds names 0 twice. seeds names 1 twice."),
        ({"labelled": [0]}, "labelled"),
        ({"metrics": ["Dise"]}, "metrics"),
        ({"format": 2}, "format"),
        ({"tolerance_mm": 0}, "tolerance_mm"),
    ],
)
def test_wrong_descriptions_are_refused(changes, said):
    with pytest.raises(SettingsError) as error:
        described(**changes)
    assert said in str(error.value)


def test_a_description_that_is_no_object(tmp_path):
    (tmp_path / "comparison.json").write_text("[]")
    with pytest.raises(BadFile, match="JSON object"):
        read_description(tmp_path)


# Cells


def test_cells_are_all_combinations_with_pairs_beside_each_other(tmp_path):
    description = described(folds=[0, 1], seeds=[0, 1], labelled=[10, "all"])
    cells = cells_of(description)
    assert [cell.number for cell in cells] == list(range(2 * 2 * 2 * 2 * 2))
    assert len({cell.folder(tmp_path) for cell in cells}) == len({cell.name for cell in cells}) == len(cells)
    for first, second in zip(cells[::2], cells[1::2], strict=True):
        assert (first.arm.name, second.arm.name) == ("scratch", "mae")
        assert {**first.key, "arm": ""} == {**second.key, "arm": ""}
    assert cells[0].state(tmp_path) == "waiting"


def finish(cell: Cell, description, comparison: Path, **other) -> None:
    cell.folder(comparison).mkdir(parents=True)
    record = {**cell.key, "state": FINISHED, "settings": {**settings_of(description, cell), **other}}
    (cell.folder(comparison) / RECORD).write_text(json.dumps(record))


def test_finished_cells_of_other_settings_are_refused_and_more_cells_are_not(tmp_path):
    short, long = described(epochs=5), described(epochs=6)
    finish(cells_of(short)[0], short, tmp_path)
    require_same_settings(tmp_path, short, cells_of(short))
    more = described(epochs=5, seeds=[0, 1], labelled=["all", 10], arms=[*ARMS, {"name": "voco", "weights": "v.pth"}])
    require_same_settings(tmp_path, more, cells_of(more))
    with pytest.raises(SettingsError, match="epochs 5 then, 6 now"):
        require_same_settings(tmp_path, long, cells_of(long))


# Few labels


def test_few_labels_are_nested_paired_and_by_subject():
    generator = np.random.default_rng(0)
    for trial in range(50):
        cases = [f"case_{number:03d}" for number in range(int(generator.integers(2, 40)))]
        subjects = {case: f"subject_{generator.integers(0, 1 + len(cases) // 2)}" for case in cases}
        fold, seed = int(generator.integers(5)), int(generator.integers(5))
        before: set[str] = set()
        for number in range(1, len(cases) + 1):
            drawn = labelled_subset(cases, number, "D", fold, seed, subjects)
            assert (len(drawn), set(drawn) > before) == (number, True)
            divided = {s for c, s in subjects.items() if c in drawn} & {
                s for c, s in subjects.items() if c not in drawn
            }
            assert len(divided) <= 1, trial  # the last one that was drawn
            before = set(drawn)
        assert labelled_subset(cases, "all", "D", fold, seed, subjects) == sorted(before) == cases
        shuffled = list(generator.permutation(cases))
        few = max(1, len(cases) // 2)
        assert labelled_subset(shuffled, few, "D", fold, seed, subjects) == labelled_subset(
            cases, few, "D", fold, seed, subjects
        )


def test_seeds_and_folds_draw_other_cases_and_too_many_are_refused():
    cases = [f"case_{number}" for number in range(30)]
    subjects = {case: case for case in cases}
    drawn = {tuple(labelled_subset(cases, 5, "D", fold, seed, subjects)) for fold in range(3) for seed in range(3)}
    assert len(drawn) == 9
    with pytest.raises(CorpusError, match="at most --labelled 30"):
        labelled_subset(cases, 31, "D", 0, 0, subjects)


@pytest.mark.parametrize(
    ("fold", "said"),
    [(4, "4 folds, 0 to 3"), (1, "none to test on"), (2, "1 of its training cases"), (3, "none to test on")],
)
def test_folds_that_test_nothing(fold, said):
    splits = [
        {"train": ["a"], "val": ["b"]},
        {"train": ["a"], "val": []},
        {"train": ["a", "b"], "val": ["b"]},
        {"train": [], "val": ["b"]},
    ]
    require_folds("D", splits, [0])
    with pytest.raises(CorpusError, match=said):
        require_folds("D", splits, [0, fold])


# Scores


def slow_scores(truth, found, spacing, tolerance):
    """Every surface voxel against every other one."""

    def edge(mask):
        steps = [(axis, step) for axis in range(mask.ndim) for step in (-1, 1)]
        inside = set(map(tuple, np.argwhere(mask)))
        return [
            v
            for v in inside
            if any(tuple(x + s * (a == axis) for a, x in enumerate(v)) not in inside for axis, s in steps)
        ]

    one, other = (np.array(edge(mask)) * spacing for mask in (truth, found))
    distances = np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))
    there, back = distances.min(1), distances.min(0)
    within = (there <= tolerance).sum() + (back <= tolerance).sum()
    return within / (len(there) + len(back)), max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.5), (2.0, 1.0)])
def test_surfaces_are_as_far_apart_as_their_slow_twin_says(spacing):
    generator = np.random.default_rng(len(spacing))
    for _ in range(6):
        shape = tuple(generator.integers(4, 9, len(spacing)))
        truth, found = (generator.uniform(size=shape) < share for share in (0.3, 0.2))
        scores = surface_scores(truth, found, spacing, 1.0)
        nsd, hd95 = slow_scores(truth, found, spacing, 1.0)
        assert scores["NSD"] == pytest.approx(nsd)
        assert scores["HD95"] == pytest.approx(hd95)
        assert surface_scores(found, truth, spacing, 1.0) == pytest.approx(scores)


def test_a_shifted_box_is_as_far_away_as_it_was_shifted():
    box = np.zeros((20, 20, 20), bool)
    box[4:10, 4:10, 4:10] = True
    away = np.roll(box, 3, axis=0)
    assert surface(box).sum() == 6**3 - 4**3
    assert surface_distances(box, box, (1, 1, 1))[0].max() == 0
    assert surface_scores(box, away, (2, 1, 1), 6.0) == {"NSD": 1.0, "HD95": 6.0}
    # Of a structure at the border of the image, the border is a surface.
    assert surface(np.ones((4, 4), bool)).sum() == 12


def test_structures_that_are_missing():
    nothing, something = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    both = surface_scores(nothing, nothing, (1, 1), 1.0)
    assert all(math.isnan(value) for value in both.values())
    for pair in ((nothing, something), (something, nothing)):
        assert surface_scores(*pair, (2, 1), 1.0) == {"NSD": 0.0, "HD95": math.hypot(6, 4)}


def test_rows_of_labels_and_regions(tmp_path, monkeypatch):
    """nnU-Net's own Dice, by the names of the structures; one that is nowhere has no value; ignored voxels count nowhere."""
    arrays = {
        "truth": np.array([[[0, 1, 1, 2], [0, 1, 3, 2]]], np.int16)[:, None],
        "found": np.array([[[0, 1, 1, 1], [0, 1, 1, 2]]], np.int16)[:, None],
    }

    class Reader:
        def read_seg(self, path):
            return arrays[Path(path).parent.name], {"spacing": [999, 1, 2]}

    for name in arrays:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii.gz").touch()
    labels = {"background": 0, "whole": [1, 2], "core": 2, "nowhere": [5], "ignore": 3}
    dataset_json = {"labels": labels, "file_ending": ".nii.gz"}
    keys = structure_names(dataset_json)
    assert keys == {"(1, 2)": "whole", "2": "core", "(5,)": "nowhere"}
    write_summary(tmp_path / "found" / "summary.json", arrays)
    monkeypatch.setattr(
        "nnunet_ssl.comparison.evaluation.PlansManager", lambda _: SimpleNamespace(image_reader_writer_class=Reader)
    )
    rows = list(scores_of(tmp_path / "found", tmp_path / "truth", {}, dataset_json, ("Dice", "NSD"), 0.5))
    assert [(r["case"], r["structure"], r["metric"]) for r in rows[:2]] == [
        ("a", "whole", "Dice"),
        ("a", "whole", "NSD"),
    ]
    values = {(r["structure"], r["metric"]): r["value"] for r in rows}
    assert values["whole", "Dice"] == values["whole", "NSD"] == 1.0
    assert values["core", "Dice"] == pytest.approx(2 / 3)
    assert values["core", "NSD"] == pytest.approx(2 / 3)
    assert math.isnan(values["nowhere", "Dice"])
    assert math.isnan(values["nowhere", "NSD"])


def write_summary(path, arrays):
    """As nnU-Net writes it: its own function for a case, its own form of a file."""
    from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask, save_summary_json

    truth, found = arrays["truth"], arrays["found"]
    metrics = {}
    for region in ((1, 2), 2, (5,)):
        masks = (region_or_label_to_mask(a, region) for a in (truth, found))
        tp, fp, fn, _ = compute_tp_fp_fn_tn(*masks, truth == 3)
        metrics[region] = {"Dice": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else np.nan}
    case = {"prediction_file": str(path.parent / "a.nii.gz"), "metrics": metrics}
    save_summary_json({"metric_per_case": [case], "mean": {}, "foreground_mean": {}}, str(path))


def test_scores_of_cells_are_joined_and_what_is_undefined_is_empty(tmp_path):
    description = described(datasets=[{"dataset": "Dataset004_Tiny"}])
    cells = cells_of(description)
    for cell in cells:
        cell.folder(tmp_path).mkdir(parents=True)
        row = {**cell.key, "case": "a, b", "structure": 'the "core"', "metric": "Dice"}
        write_scores(
            [{**row, "value": 0.1 + cell.number}, {**row, "value": math.nan}], cell.folder(tmp_path) / "scores.csv"
        )
    with open(join_scores(cells, tmp_path), newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["arm"], r["case"], r["structure"], r["value"]) for r in rows] == [
        ("scratch", "a, b", 'the "core"', "0.1"),
        ("scratch", "a, b", 'the "core"', ""),
        ("mae", "a, b", 'the "core"', "1.1"),
        ("mae", "a, b", 'the "core"', ""),
    ]


# What the pre-training has seen


def test_a_corpus_that_holds_the_tested_images(tmp_path, monkeypatch, tiny_dataset):
    from nnunet_ssl.comparison import seen

    raw = tmp_path / "raw"
    tested = tiny_dataset(raw, 900)
    images = {f"tiny_{n:02d}": [str(tested / "imagesTr" / f"tiny_{n:02d}_0000.nii.gz")] for n in range(4)}
    subjects = {case: f"Dataset900_Tiny/{case}" for case in images}
    corpus = raw / "Dataset901_Corpus"
    corpus.mkdir()
    entries = {"x": {"images": images["tiny_00"]}, "y": {"images": images["tiny_03"]}}
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0}, "file_ending": ".nii.gz", "dataset": entries}
    (corpus / "dataset.json").write_text(json.dumps({**content, "numTraining": 2}))
    checkpoint = {"ssl": {"datasets": ["Dataset901_Corpus", 5], "dataset": "Dataset901_Corpus"}}
    monkeypatch.setattr(seen, "read_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(seen, "resolve_source", lambda _: SimpleNamespace(path="weights"))
    monkeypatch.setattr(seen, "raw_folder", lambda name: str(raw / name) if (raw / name).is_dir() else None)
    assert corpus_of(checkpoint) == ("Dataset901_Corpus",)
    told = seen_in_pretraining("w.pth", "Dataset900_Tiny", {"tiny_00", "tiny_01"}, subjects, images)
    assert told == [
        "w.pth was pre-trained on Dataset901_Corpus, which holds 1 image file of Dataset900_Tiny that are tested on."
    ]
    assert seen_in_pretraining("w.pth", "Dataset900_Tiny", {"tiny_01"}, subjects, images) == []
    checkpoint["ssl"]["datasets"] = ["Dataset900_Tiny", "Dataset999_Gone"]
    assert "those tested on among them" in seen_in_pretraining("w.pth", "Dataset900_Tiny", {"a"}, subjects, images)[0]


# Flags


@pytest.fixture
def describe(tmp_path, monkeypatch):
    """Function: flags -> description, in a folder of its own; checkpoints are called by their file's stem."""
    monkeypatch.setattr(compare_flags, "name_of", lambda weights: Path(weights).stem)

    def run(typed: str):
        args = build_parser().parse_args(typed.split())
        names = [f"Dataset{int(d):03d}_Tiny" for d in args.datasets]
        return compare_flags.description_of(args, tmp_path / "out", lambda _: names, write=True)

    return run


def test_flags_become_a_description_and_the_same_ones_go_on(describe):
    typed = (
        "4 7 -pretrained_weights mae.pth b=x/mae.pth y/mae.pth -f 0 2 --seeds 3 --labelled 10 all --dynamic --epochs 9"
    )
    description = describe(typed)
    assert [a.name for a in description.arms] == ["scratch", "mae", "b", "mae_2", "nnunet"]
    assert [a.trainer for a in description.arms][:2] == ["SSLScratchTrainer", "SSLFinetuneTrainer"]
    assert (description.arms[4].trainer, description.arms[4].plans) == ("nnUNetTrainer", "nnUNetPlans")
    assert (description.folds, description.seeds, description.labelled) == ((0, 2), (0, 1, 2), (10, "all"))
    assert [entry.dataset for entry in description.datasets] == ["Dataset004_Tiny", "Dataset007_Tiny"]
    assert describe(typed) == describe("-f 0 2") == describe("-device cpu") == description


def test_other_flags_than_the_folders_are_refused(describe, tmp_path):
    describe("4 -pretrained_weights mae.pth --epochs 9")
    for typed, said in (
        ("--epochs 8 --keep scores", 'epochs: 9 there, 8 asked for; keep: "predictions" there, "scores" asked for'),
        ("-pretrained_weights voco.pth", "voco"),
        ("5", "Dataset005_Tiny"),
    ):
        with pytest.raises(SettingsError, match="another comparison") as error:
            describe(typed)
        assert said in str(error.value)
    (tmp_path / "out" / "comparison.json").unlink()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(FolderTaken, match="holds files"):
        describe("4 -pretrained_weights mae.pth")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("4", "which checkpoints?"),
        ("4 -pretrained_weights a.pth -f all", "fold all trains on every case"),
        ("4 3d_fullres 0 all -pretrained_weights a.pth", "fold all trains on every case"),
        ("4 -pretrained_weights a.pth --seeds 0", "--seeds must be at least 1"),
        ("4 -pretrained_weights a.pth --labelled few", 'numbers of cases or "all"'),
        ("4 -pretrained_weights a.pth --labelled 0", "labelled"),
        ("4 -pretrained_weights a.pth --list --run 3", "--list and --run are different things"),
        ("4 -pretrained_weights a.pth --metrics dice", "Did you mean Dice?"),
        ("4 -pretrained_weights x=a.pth x=b.pth", "arms names x twice"),
    ],
)
def test_wrong_flags(typed, said, describe, capsys):
    with pytest.raises((SettingsError, SystemExit)) as error:
        describe(typed)
    assert said in str(error.value) + capsys.readouterr().err


# Work


@pytest.fixture
def working(tmp_path, monkeypatch):
    """Function (description, what a cell becomes by its number) -> (outcome, numbers in the order in which they were run)."""
    monkeypatch.setattr(work_module, "prepare", lambda *_: None)

    def run(description, becomes, chosen=None):
        ran = []

        def process(cell, comparison, *_):
            ran.append(cell.number)
            cell.folder(comparison).mkdir(parents=True, exist_ok=True)
            if becomes(cell.number) == FINISHED:
                record = {**cell.key, "state": FINISHED, "settings": settings_of(description, cell)}
                (cell.folder(comparison) / RECORD).write_text(json.dumps(record))
            else:
                record_failure(cell, comparison, f"no {cell.number}")

        monkeypatch.setattr(work_module, "run_in_process", process)
        cells = cells_of(description)
        outcome = work(tmp_path, description, cells if chosen is None else [cells[k] for k in chosen], How("cpu", 1, 1))
        return outcome, ran

    return run


def test_a_failed_cell_is_recorded_the_rest_goes_on_and_it_is_tried_again(working, tmp_path):
    description = described(seeds=[0, 1])
    outcome, ran = working(description, lambda number: "failed" if number == 2 else FINISHED)
    assert ran == list(range(8))
    assert ([c.number for c in outcome.failed], len(outcome.finished), outcome.others) == ([2], 7, [])
    said = overview.ending(outcome, tmp_path, None)
    assert "1 cell failed" in said
    assert f"no 2\nOnce that is mended, they are tried again by: nnUNetv2_pretrain_compare -o {tmp_path}" in said
    assert "8 cells: 7 finished, 1 failed\n2: no 2" in overview.table(cells_of(description), tmp_path)
    assert working(description, lambda _: "failed")[1] == [2]
    outcome, ran = working(description, lambda _: FINISHED)
    assert (ran, outcome.failed, len(outcome.finished)) == ([2], [], 8)
    assert working(description, lambda _: "failed")[1] == []


def test_a_cell_of_another_process_is_left_to_it(working, tmp_path):
    description = described()
    (tmp_path / "state").mkdir()
    with Participant(str(tmp_path / "state"), "comparing") as other:
        assert other.claim(cells_of(description)[1].name) == 0
        outcome, ran = working(description, lambda _: FINISHED)
        assert (ran, [c.number for c in outcome.others]) == ([0, 2, 3], [1])
        assert working(description, lambda _: FINISHED, [1])[1] == []
        assert "1 cell left to" in overview.ending(outcome, tmp_path, None)
    assert working(description, lambda _: FINISHED, [1])[1] == [1]


def test_what_a_cells_process_ends_with(tmp_path, monkeypatch, capsys):
    """Killed: recorded as failed. Stopped by a signal: nothing is recorded, and the signal goes on."""
    cell = cells_of(described())[0]
    for code, error in (
        (-9, "killed by SIGKILL. SIGKILL is often"),
        (3, "exit code 3"),
        (1, "before it could say why"),
    ):
        monkeypatch.setattr(
            work_module.subprocess, "Popen", lambda *_, _code=code, **__: SimpleNamespace(wait=lambda: _code)
        )
        run_in_process(cell, tmp_path, How("cpu", 1, 1), "")
        assert cell.state(tmp_path) == "failed"
        assert error in cell.record(tmp_path)["error"]
        assert "FAILED" in capsys.readouterr().out
        (cell.folder(tmp_path) / RECORD).unlink()
    monkeypatch.setattr(work_module.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda: 128 + 15))
    with pytest.raises(Stopped):
        run_in_process(cell, tmp_path, How("cpu", 1, 1), "")
    assert cell.state(tmp_path) == "waiting"
