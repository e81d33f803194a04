"""Which files are images: layouts, names, folders, voxels; and what paths and values say of them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from nnunet_ssl.cli.corpus import main as corpus_main
from nnunet_ssl.corpus.hounsfield import holds_hounsfield_units
from nnunet_ssl.corpus.images import TEST_IMAGES, list_images, read_dataset_json
from nnunet_ssl.corpus.importing import Imported, ImportOptions, import_corpus
from nnunet_ssl.corpus.label_maps import is_label_map
from nnunet_ssl.corpus.overview.drop import drop_duplicates
from nnunet_ssl.corpus.sources.folder_names import from_folders
from nnunet_ssl.corpus.sources.kinds import SourceOptions
from nnunet_ssl.corpus.sources.layouts import called_like_a_label
from nnunet_ssl.corpus.table import numbers, read_table
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.entering import read_json

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def layouts() -> Any:
    spec = importlib.util.spec_from_file_location("make_layouts", DOCS / "make_layouts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_import(folder: Path, source: Path, **options: Any) -> Imported:
    chosen = ImportOptions(SourceOptions("X"), lenient=True, num_threads=2, **options)
    return import_corpus([str(source)], str(folder / "Dataset001_X"), chosen, show_progress=False)


def save(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


def test_in_every_layout_all_images_and_no_label_map_are_registered(layouts: Any, tmp_path: Path) -> None:
    for number, name in enumerate(layouts.TREES):
        row = layouts.found_in(name, tmp_path / str(number))
        found, _, of = row[2].partition(" of ")
        assert found == of, row
        assert row[3] == "0", row


def test_the_matrix_in_the_documents_is_what_is_found(layouts: Any) -> None:
    assert layouts.matrix() in (DOCS / "corpus.md").read_text(), "make docs"


@pytest.mark.parametrize(
    "stem",
    [
        *(
            "x_seg",
            "x_gt",
            "x_msk",
            "a/segmentation",
            "a/segmentation-12",
            "label0001",
            "labelsTr/x",
            "masks/x",
            "a/GT/x",
        ),
        *("ground_truth/x", "x-label", "brainmask", "x_brain_mask", "segmentations/liver", "x_ground-truth", "mask_3"),
    ],
)
def test_called_like_label_maps(stem: str) -> None:
    assert called_like_a_label(stem)


@pytest.mark.parametrize(
    "stem", ["x", "legend", "unlabelled/x", "x_masked", "segev_t1", "a/gtv/x", "roi_study/x", "labelled_1/x"]
)
def test_called_like_images(stem: str) -> None:
    assert not called_like_a_label(stem)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_the_voxels_count(tmp_path: Path, ending: str) -> None:
    generator = np.random.default_rng(0)
    blocks = np.kron(generator.integers(0, 4, (4, 5, 6)), np.ones((5, 5, 5))).astype(np.int16)
    smooth = np.cumsum(generator.normal(size=(20, 25, 30)), axis=2)
    images = {
        "many classes": (np.kron(np.arange(120).reshape(4, 5, 6), np.ones((5, 5, 5))).astype(np.uint8), True),
        "few classes": (blocks, True),
        "noise of whole numbers": (generator.integers(0, 200, (20, 25, 30)).astype(np.uint8), False),
        "an 8-bit image": ((20 * (smooth - smooth.min()) % 256).astype(np.uint8), False),
        "real numbers": ((0.5 + blocks).astype(np.float32), False),
        "negative numbers": ((blocks - 2).astype(np.int16), False),
        "empty": (np.zeros((20, 25, 30), np.uint8), False),
        "scan": (generator.normal(100, 20, (20, 25, 30)).astype(np.int16), False),
    }
    for name, (voxels, expected) in images.items():
        assert is_label_map(str(save(tmp_path / f"{name}.{ending}", voxels))) is expected, name
    assert not is_label_map(str(tmp_path / "missing.nii"))


def test_label_maps_by_voxels_are_left_alone_unless_said_otherwise(layouts: Any, tmp_path: Path) -> None:
    images, labels = layouts.make_tree("label maps called anything", tmp_path / "tree")
    done = run_import(tmp_path / "one", tmp_path / "tree")
    assert done.registered.total == len(images)
    assert any("--not-label-maps" in note for note in done.notes)
    assert run_import(tmp_path / "two", tmp_path / "tree", not_label_maps=True).registered.total == len(images | labels)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        (
            "Patient_003/2019-03-03/T1 MPRAGE sag",
            {"subject": "Patient_003", "session": "2019-03-03", "modality": "T1w"},
        ),
        ("P7/visit2/axial_T2_flair", {"subject": "P7", "session": "visit2", "modality": "FLAIR"}),
        ("a/Patient 12/20190303/ep2d_diff", {"subject": "Patient 12", "session": "20190303", "modality": "DWI"}),
        ("case_00001/imaging", {"subject": "case_00001"}),
        ("pat07/T1c/x", {"subject": "pat07", "modality": "T1wCE"}),
        ("hippocampus_001", {}),
        ("2019-03-03/x", {}),
        ("scans/T1/x", {}),
    ],
)
def test_what_folders_say(stem: str, expected: dict[str, str]) -> None:
    assert from_folders(stem) == expected


def test_cts_are_recognised_by_their_values(layouts: Any, tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / "ct" / f"scan{n}.nii.gz", layouts._voxels("ct", n))
        save(tmp_path / "mr" / f"scan{n}.nii.gz", layouts._voxels("image", n))
    assert holds_hounsfield_units(str(tmp_path / "ct" / "scan0.nii.gz"))
    assert not holds_hounsfield_units(str(tmp_path / "mr" / "scan0.nii.gz"))
    done = run_import(tmp_path / "one", tmp_path / "ct")
    assert set(read_table(done.registered.folder)["modality"]) == {"CT"}
    assert any("Hounsfield" in note for note in done.notes)
    assert read_table(run_import(tmp_path / "two", tmp_path / "mr").registered.folder)["modality"].isna().all()
    said = run_import(tmp_path / "three", tmp_path / "ct", channels=["MR"])
    assert not any("Hounsfield" in note for note in said.notes)


def test_labels_go_into_nnunets_place_when_asked(layouts: Any, tmp_path: Path) -> None:
    for number, name in enumerate(("Medical Decathlon", "KiTS", "nnU-Net v2", "ACDC")):
        tree = tmp_path / str(number)
        images, labels = layouts.make_tree(name, tree)
        folder = run_import(tmp_path / f"raw{number}", tree, with_labels=True).registered.folder
        content = read_dataset_json(folder)
        expected = ["background", "label_1", "label_2"]
        assert list(content["labels"].values()) == [0, 1, 2], name
        assert list(content["labels"]) == expected, "dataset.json of the trees names fewer"
        cases = list_images(folder, content)
        assert {Path(case["label"]) for case in cases.values() if case["label"]} == labels, name
        assert len(cases) == len(images)
        run_import(tmp_path / f"raw{number}", tree)
        assert read_dataset_json(folder)["labels"] == content["labels"], "what was asked for once stays"
    names = {"background": 0, "kidney": 1, "tumour": 2}
    (tmp_path / "2" / "dataset.json").write_text(json.dumps({**layouts.V2, "labels": names}))
    folder = run_import(tmp_path / "named", tmp_path / "2", with_labels=True).registered.folder
    assert read_dataset_json(folder)["labels"] == names


def test_labels_that_nnunet_could_not_use_are_refused(layouts: Any, tmp_path: Path) -> None:
    layouts.make_tree("KiTS", tmp_path / "a")
    save(tmp_path / "a" / "case_00001" / "segmentation.nii.gz", np.full((16, 20, 24), 7, np.uint8))
    with pytest.raises(CorpusError, match="without gaps"):
        run_import(tmp_path / "raw", tmp_path / "a", with_labels=True)
    (tmp_path / "a" / "case_00001" / "segmentation.nii.gz").write_bytes(b"nope")
    with pytest.raises(CorpusError, match=r"1 label maps cannot be used"):
        run_import(tmp_path / "raw", tmp_path / "a", with_labels=True)
    layouts.make_tree("folders of patients", tmp_path / "b")
    with pytest.raises(CorpusError, match="no image has a label map"):
        run_import(tmp_path / "raw", tmp_path / "b", with_labels=True)


def test_duplicates_are_dropped_on_request(tmp_path: Path) -> None:
    for n in range(2):
        save(tmp_path / "s" / f"b{n}.nii.gz", np.random.default_rng(n).normal(size=(9, 10, 11)).astype(np.float32))
    shutil.copy(tmp_path / "s" / "b0.nii.gz", tmp_path / "s" / "a.nii.gz")
    (tmp_path / "s" / "c.nii").write_bytes(gzip.decompress((tmp_path / "s" / "b1.nii.gz").read_bytes()))
    assert run_import(tmp_path / "one", tmp_path / "s").registered.total == 4
    done = run_import(tmp_path / "two", tmp_path / "s", drop_duplicates=True)
    assert [Path(p).name for p in sorted(read_table(done.registered.folder)["path"])] == ["a.nii.gz", "b1.nii.gz"]
    assert any("2 files repeat" in note for note in done.notes)


def test_duplicates_are_taken_out_of_a_data_set_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "s" / "b.nii.gz", np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32))
    save(tmp_path / "s" / "c.nii.gz", np.random.default_rng(1).normal(size=(9, 10, 11)).astype(np.float32))
    shutil.copy(tmp_path / "s" / "b.nii.gz", tmp_path / "s" / "a.nii.gz")
    folder = run_import(tmp_path, tmp_path / "s").registered.folder
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    corpus_main(["-d", "1", "--drop-duplicates", "--sample", "0"])
    assert read_table(folder)["case"].tolist() == ["a", "c"]
    assert list(read_json(Path(folder) / "dataset.json")["dataset"]) == ["a", "c"]
    assert (tmp_path / "s" / "b.nii.gz").is_file()
    assert drop_duplicates(folder) == []
    with pytest.raises(CorpusError, match="by hand"):
        drop_duplicates(str(tmp_path / "s"))


def test_test_images_join_when_asked(layouts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.make_tree("nnU-Net v1", tmp_path)
    dataset_json = read_dataset_json(str(tmp_path), labels=False)
    assert set(list_images(str(tmp_path), dataset_json)) == {"a_001", "a_002", "a_003"}
    monkeypatch.setenv(TEST_IMAGES, "1")
    cases = list_images(str(tmp_path), dataset_json)
    assert set(cases) == {*(f"a_00{n}" for n in (1, 2, 3)), *(f"b_00{n}" for n in (1, 2, 3))}
    assert cases["b_001"]["label"] is None
    save(tmp_path / "imagesTs" / "a_001_0000.nii.gz", np.zeros((3, 3, 3), np.float32))
    with pytest.raises(CorpusError, match="in imagesTr and in imagesTs"):
        list_images(str(tmp_path), dataset_json)


def test_importing_again_after_a_bad_file(tmp_path: Path) -> None:
    """Of a file that could not be read the table holds no numbers, and masks are compared with the numbers of all."""
    rows = ["path,anatomy_mask"]
    for n in range(2):
        voxels = np.random.default_rng(n).normal(size=(9, 10, 11)).astype(np.float32)
        save(tmp_path / f"i{n}.nii.gz", voxels)
        save(tmp_path / f"m{n}.nii.gz", (voxels > 0).astype(np.uint8))
        rows.append(f"i{n}.nii.gz,m{n}.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"nope")
    (tmp_path / "scans.csv").write_text("\n".join([*rows, "bad.nii.gz,"]) + "\n")
    for _ in range(2):
        done = run_import(tmp_path / "one", tmp_path / "scans.csv")
        assert (done.registered.total, len(done.registered.problems)) == (2, 1)
    save(tmp_path / "bad.nii.gz", np.random.default_rng(9).normal(size=(9, 10, 11)).astype(np.float32))
    assert run_import(tmp_path / "one", tmp_path / "scans.csv").registered.total == 3


def test_numbers_of_any_column() -> None:
    table = pd.DataFrame(
        {
            "object": pd.Series([1, None, pd.NA], dtype=object),
            "Int64": pd.Series([1, None, 3], dtype="Int64"),
            "float": [1.0, np.nan, 3.0],
        }
    )
    found = numbers(table, list(table))
    np.testing.assert_equal(found, [[1, 1, 1], [np.nan] * 3, [np.nan, 3, 3]])
    assert numbers(table[:0], ["float"]).shape == (0, 1)
