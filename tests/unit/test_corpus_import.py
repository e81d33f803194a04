"""Importing folders, tables and nnU-Net data sets: what is registered, how often, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_ssl.cli.import_corpus import main
from nnunet_ssl.corpus.headers import read_header
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.corpus.names import assign_names
from nnunet_ssl.corpus.reader import CorpusReader
from nnunet_ssl.corpus.reading import choose_reader
from nnunet_ssl.corpus.table import read_table
from nnunet_ssl.errors import CorpusError, UnusableImage

SHAPE = (14, 12, 10)  # in the file; arrays are [10, 12, 14]


@pytest.fixture
def folders(nnunet_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, folder in nnunet_folders.items():
        monkeypatch.setenv(name, folder)
    return nnunet_folders


@pytest.fixture
def run(folders: dict[str, str]) -> Callable[..., tuple[dict[str, Any], pd.DataFrame]]:
    """Import as the command does; returns dataset.json and the table with the bad images."""

    def run_import(*sources: Path | str, flags: tuple[str, ...] = (), number: int = 745) -> tuple[Any, pd.DataFrame]:
        name = () if (Path(folders["nnUNet_raw"]) / f"Dataset{number}_Scans").exists() else ("-n", "Scans")
        main(["-i", *map(str, sources), "-d", str(number), *name, *flags])
        folder = Path(folders["nnUNet_raw"]) / f"Dataset{number}_Scans"
        return json.loads((folder / "dataset.json").read_text()), read_table(str(folder), with_problems=True)

    return run_import


def save(path: Path, value: float = 0, volumes: int | None = None, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(int(value))
    array = (generator.normal(size=SHAPE if volumes is None else (*SHAPE, volumes)) * 100).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
    """What the command prints when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        main(["-d", "745", "-n", "Scans", *map(str, arguments)])
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_a_folder_with_everything_in_it(run, tmp_path, capsys):
    source = tmp_path / "my scäns"
    for number, name in enumerate(["Müller 1.nii.gz", "sub/sub.nii", "deep/er/P7_ses02_T1w.nii.gz", "P1_seg.nii.gz"]):
        save(source / name, number)
    image = sitk.ReadImage(str(source / "sub/sub.nii"))
    sitk.WriteImage(image, str(source / "a.nrrd"))
    sitk.WriteImage(image, str(source / "a.mha"))
    tifffile.imwrite(source / "t.tif", np.ones((5, 20, 20), np.uint16))
    (source / "t.json").write_text('{"spacing": [3, 1, 1]}')
    (source / "link.nii.gz").symlink_to(source / "Müller 1.nii.gz")
    (source / "notes.txt").write_text("hello")
    (source / ".hidden.nii.gz").write_text("no image")
    dataset, table = run(source)
    by_file = {Path(path).name: row for path, row in table.set_index("path").iterrows()}
    assert len(table) == 7
    assert table["problem"].isna().all()
    assert by_file["Müller 1.nii.gz"]["case"] == "Muller-1"
    # a.nrrd and a.mha would both be called a: neither is, whatever the order
    assert all(by_file[f"a.{e}"]["case"].startswith("a_") for e in ("nrrd", "mha"))
    assert by_file["P7_ses02_T1w.nii.gz"][["case", "modality"]].tolist() == ["deep_er_P7_ses02_T1w", "T1w"]
    assert by_file["t.tif"][["depth", "height", "spacing_z", "slices"]].tolist() == [5, 20, 3.0, 5]
    assert by_file["sub.nii"][["depth", "height", "width", "dtype", "orientation"]].tolist() == [
        10,
        12,
        14,
        "int16",
        "RAS",
    ]
    assert by_file["a.nrrd"][["depth", "height", "width", "dtype", "orientation"]].tolist() == [
        10,
        12,
        14,
        "int16",
        "RAS",
    ]
    printed = capsys.readouterr().out
    assert "1 files are called like segmentations" in printed
    assert "1 .txt" in printed
    # every file is read by nnU-Net's way to a reader, in the same orientation of the array
    cases = list_images(str(tmp_path), dataset)
    reader = choose_reader(dataset, cases)
    assert reader.__name__ == "CorpusReader"
    read = {name: reader().read_images(case["images"]) for name, case in cases.items()}
    np.testing.assert_array_equal(read[by_file["a.mha"]["case"]][0], read[by_file["sub.nii"]["case"]][0])
    assert read["t"][1]["spacing"] == [3.0, 1.0, 1.0]


def test_again_only_what_is_new(run, tmp_path):
    source = tmp_path / "scans"
    save(source / "b.nii.gz", 1)
    first, before = run(source)
    modified = os.path.getmtime(tmp_path / "nnUNet_raw/Dataset745_Scans/corpus.parquet")
    save(source / "a.nii.gz", 2)
    save(source / "inner/b.nii.gz", 3)
    second, after = run(source)
    assert list(first["dataset"]) == ["b"]
    assert list(second["dataset"]) == ["b", "a", "inner_b"]
    assert after.iloc[0].drop("modified").equals(before.iloc[0].drop("modified"))
    third, again = run(source)
    assert third == second
    pd.testing.assert_frame_equal(again, after)
    assert os.path.getmtime(tmp_path / "nnUNet_raw/Dataset745_Scans/corpus.parquet") >= modified


def test_files_that_change_or_go(run, tmp_path, capsys, folders):
    source = tmp_path / "scans"
    for number in range(3):
        save(source / f"c{number}.nii.gz", number)
    run(source)
    (source / "c0.nii.gz").unlink()
    with open(source / "c1.nii.gz", "r+b") as file:
        file.truncate(400)
    with pytest.raises(SystemExit):
        main(["-i", str(source), "-d", "745"])
    assert "--prune" in capsys.readouterr().err
    dataset, table = run(source, flags=("--prune",))
    assert list(dataset["dataset"]) == ["c2"]
    assert "their files are gone: 1" in capsys.readouterr().out
    assert table.set_index("case")["problem"].notna().to_dict() == {"c1": True, "c2": False}
    save(source / "c1.nii.gz", 7)
    dataset, table = run(source)
    assert list(dataset["dataset"]) == ["c1", "c2"]
    assert "1 files have changed" in capsys.readouterr().out


def test_names_do_not_depend_on_the_order_and_never_hide_a_segmentation():
    names = ["x", "X", "ct_seg", "ct-seg", "日本", "a b", "a/b"]
    keys = [str(i) for i in range(len(names))]
    forward = assign_names(names, keys, [])
    assert forward == assign_names(names[::-1], keys[::-1], [])[::-1]
    assert len({name.casefold() for name in forward}) == len(names)
    assert not any(name.endswith("_seg") for name in forward)
    assert forward[2] == "ct_seg-image"
    assert all(name.isascii() and "/" not in name and " " not in name for name in forward)
    assert assign_names(["new", "old"], ["1", "2"], ["old"])[0] == "new"
    assert assign_names(["new", "old"], ["1", "2"], ["old"])[1] != "old"


BAD = {
    "zero_spacing": "impossible spacing",
    "nan_spacing": "impossible spacing",
    "singular": "impossible orientation",
    "cut": "truncated",
    "cut_gz": "truncated or damaged",
    "no_gzip": "not a gzip file",
    "text": "cannot be read",
    "empty": "empty: 0 bytes",
    "cut_mha": "truncated",
    "cut_nrrd": "truncated",
    "colour": "colour",
    "five_d": "5-D",
    "flat_tiff": "not a volume",
}


def make_bad_heap(folder: Path) -> dict[str, Path]:
    """One file of each kind in BAD, and two good ones."""
    heap = {}
    for name in ("zero_spacing", "nan_spacing", "singular"):
        path = heap[name] = save(folder / f"{name}.nii")
        raw = bytearray(path.read_bytes())
        if name == "singular":
            raw[280:328] = np.zeros(12, "<f4").tobytes()
        else:
            raw[80:84] = np.array([0 if name == "zero_spacing" else np.nan], "<f4").tobytes()
        path.write_bytes(raw)
    good = save(folder / "good.nii")
    heap["cut"] = folder / "cut.nii"
    heap["cut"].write_bytes(good.read_bytes()[:2000])
    packed = gzip.compress(good.read_bytes())
    heap["cut_gz"] = folder / "cut.nii.gz"
    heap["cut_gz"].write_bytes(packed[: len(packed) // 2])
    heap["no_gzip"] = folder / "raw.nii.gz"
    heap["no_gzip"].write_bytes(good.read_bytes())
    heap["text"] = folder / "text.nii"
    heap["text"].write_text("this is no image")
    heap["empty"] = folder / "empty.nrrd"
    heap["empty"].touch()
    image = sitk.ReadImage(str(good))
    for ending in ("mha", "nrrd"):
        path = heap[f"cut_{ending}"] = folder / f"cut.{ending}"
        sitk.WriteImage(image, str(path), useCompression=False)
        path.write_bytes(path.read_bytes()[:-500])
    heap["colour"] = folder / "colour.nrrd"
    sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), str(heap["colour"]))
    heap["five_d"] = folder / "five.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8, 2, 2), np.int16), np.eye(4)), heap["five_d"])
    heap["flat_tiff"] = folder / "flat.tif"
    tifffile.imwrite(heap["flat_tiff"], np.zeros((16, 16), np.uint8))
    save(folder / "mirrored.nii.gz", affine=np.diag([-1.0, 1, 1, 1]))
    return heap


def test_every_bad_header_is_named_and_left_out(run, tmp_path, capsys):
    heap = make_bad_heap(tmp_path / "heap")
    for name, path in heap.items():
        with pytest.raises(UnusableImage, match=BAD[name]):
            print(name, read_header(str(path)))
    message = refused(capsys, "-i", tmp_path / "heap", "--strict")
    assert not (tmp_path / "nnUNet_raw/Dataset745_Scans").exists()
    assert all(str(path) in message for path in heap.values())
    dataset, table = run(tmp_path / "heap")
    # a mirrored image has a negative determinant and is as good as any
    assert sorted(dataset["dataset"]) == ["good", "mirrored"]
    problems = table[table["problem"].notna()].set_index("path")["problem"]
    assert set(problems.index) == {str(path) for path in heap.values()}
    printed = capsys.readouterr().out
    assert all(f"{path}: {problems[str(path)]}" in printed for path in heap.values())


def test_mistakes_in_a_csv_are_reported_all_at_once(tmp_path, folders, capsys):
    image = save(tmp_path / "a.nii.gz", 1)
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)), tmp_path / "small.nii.gz")
    (tmp_path / "dangling.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (tmp_path / "s.txt").touch()
    lines = [
        "path,subject,anatomy_mask,volume",
        "a.nii.gz,P1,,",
        "missing.nii.gz,P2,,",
        "a.nii.gz,P1,,",
        "too,many,fields,in,this,row",
        "dangling.nii.gz,P3,,",
        "s.txt,P4,,",
        ",P5,,",
        f"{image},P1,no_mask.nii.gz,last",
        "a.nii.gz,P1,small.nii.gz,0",
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    message = refused(capsys, "-i", tmp_path / "list.csv")
    for row, reason in [
        (3, "there is no such file"),
        (4, "listed before"),
        (5, "6 fields, the header has 4"),
        (6, "a link that points nowhere"),
        (7, "s.txt: pre-training reads .nii.gz"),
        (8, "the path is empty"),
        (9, "volume is 'last'"),
        (9, "no_mask.nii.gz: there is no such file"),
        (10, "its anatomy mask has [5, 5, 5] voxels, the image has [10, 12, 14]"),
    ]:
        assert any(f"list.csv, row {row}" in line and reason in line for line in message.splitlines()), (row, reason)
    assert "9 mistakes" in message
    assert not list(Path(folders["nnUNet_raw"]).iterdir())
    main(["-i", str(tmp_path / "list.csv"), "-d", "745", "-n", "Scans", "--lenient"])
    dataset = json.loads((tmp_path / "nnUNet_raw/Dataset745_Scans/dataset.json").read_text())
    assert list(dataset["dataset"]) == ["P1_a"]


@pytest.mark.parametrize(("delimiter", "ending"), [(",", "csv"), (";", "csv"), ("\t", "tsv"), ("", "parquet")])
def test_tables_of_every_kind(run, tmp_path, monkeypatch, delimiter, ending):
    save(tmp_path / "data/a.nii.gz", 1)
    save(tmp_path / "data/b, c.nii.gz", 2)
    monkeypatch.setenv("MY_DATA", str(tmp_path / "data"))
    content = pd.DataFrame(
        {
            "Image_Path": ["$MY_DATA/a.nii.gz", "data/b, c.nii.gz"],
            "participant_id": ["007", "011"],
            "iqs": [1.5, None],
            "site": ["x", "n/a"],
            "age": [40, 50],
        }
    )
    path = tmp_path / f"list.{ending}"
    if ending == "parquet":
        content.to_parquet(path)
    else:
        content.to_csv(path, sep=delimiter, index=False, encoding="utf-8-sig")
    _, table = run(path)
    assert table["subject"].tolist() == ["007", "011"]
    assert table["case"].tolist() == ["007_a", "011_b-c"]
    assert table["age"].tolist() == [40, 50]
    assert table["iqs"].tolist()[0] == 1.5
    assert pd.isna(table["iqs"][1])
    assert pd.isna(table["site"][1]) or ending == "parquet"


def test_a_csv_without_paths_or_with_two(tmp_path, folders, capsys):
    (tmp_path / "a.csv").write_text("picture,subject\nx.nii,1\n")
    assert "has no column `path`" in refused(capsys, "-i", tmp_path / "a.csv")
    (tmp_path / "c.csv").write_text("path,age,age\nx.nii,1,2\n")
    assert "several columns called age" in refused(capsys, "-i", tmp_path / "c.csv")
    (tmp_path / "d.csv").write_bytes(b"path,name\nx.nii,M\xfcller\n")
    assert "UTF-8" in refused(capsys, "-i", tmp_path / "d.csv")
    (tmp_path / "b.csv").write_text("image,file\nx.nii,y.nii\n")
    assert "could all be `path`" in refused(capsys, "-i", tmp_path / "b.csv")


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd"])
def test_series_first_mean_all(run, tmp_path, ending):
    source = tmp_path / "s"
    path = save(source / "dwi.nii", 5, volumes=3)
    series = np.asarray(nibabel.load(path).dataobj)
    if ending != "nii":
        if ending == "nrrd":
            sitk.WriteImage(sitk.ReadImage(str(path)), str(source / f"dwi.{ending}"))
        else:
            nibabel.save(nibabel.load(path), source / f"dwi.{ending}")
        path.unlink()
    save(source / "t1.nii.gz", 6)
    expected = {"0": series[..., 0], "1": series[..., 1], "2": series[..., 2], "mean": series.mean(-1)}

    def volumes(dataset: dict[str, Any]) -> dict[str, np.ndarray]:
        images = {case: entry["images"] for case, entry in dataset["dataset"].items() if case != "t1"}
        return {case: CorpusReader().read_images(files)[0] for case, files in images.items()}

    for number, series_flag, names in [
        (1, "first", ["dwi"]),
        (2, "mean", ["dwi"]),
        (3, "all", ["dwi_v000", "dwi_v001", "dwi_v002"]),
    ]:
        dataset, table = run(source, flags=("--series", series_flag), number=700 + number)
        read = volumes(dataset)
        assert list(read) == names
        for case, volume in table[table["case"] != "t1"][["case", "volume"]].itertuples(index=False):
            np.testing.assert_allclose(read[case][0], expected[volume].transpose(2, 1, 0), rtol=1e-5)
    # all of them after the first: what is registered keeps its name
    dataset, _ = run(source, flags=("--series", "all"), number=701)
    assert list(volumes(dataset)) == ["dwi", "dwi_v001", "dwi_v002"]


def test_two_masks_are_one_segmentation(run, tmp_path):
    save(tmp_path / "a.nii.gz", 1)
    anatomy, face = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    anatomy[2:12], face[:5] = 1, 255
    for name, mask in (("brain", anatomy), ("face", face)):
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "l.csv").write_text("path,anat_mask,anon_mask\na.nii.gz,brain.nii.gz,face.nii.gz\n")
    dataset, table = run(tmp_path / "l.csv")
    assert dataset["labels"] == {"background": 0, "anatomy": 1, "anonymised": 2}
    labels = CorpusReader().read_seg(dataset["dataset"]["a"]["label"])[0][0].transpose(2, 1, 0)
    expected = anatomy.copy()
    expected[:5] = 2
    np.testing.assert_array_equal(labels, expected)
    assert table["anonymisation_mask"][0] == str(tmp_path / "face.nii.gz")
    # only an anonymisation mask is label 2 all the same
    (tmp_path / "l.csv").write_text("path,anon_mask\na.nii.gz,face.nii.gz\n")
    dataset, _ = run(tmp_path / "l.csv", number=746)
    assert set(np.unique(CorpusReader().read_seg(dataset["dataset"]["a"]["label"])[0])) == {0, 2}


def test_nnunet_datasets(run, tmp_path, tiny_dataset, capsys):
    one = tiny_dataset(tmp_path / "other", dataset_id=901, num_cases=2)
    two = tiny_dataset(tmp_path / "other", dataset_id=902, num_cases=2, channels=2)
    (one / "imagesTs").mkdir()
    shutil.copy(one / "imagesTr/tiny_00_0000.nii.gz", one / "imagesTs/test_0000.nii.gz")
    dataset, table = run(one)
    assert list(dataset["dataset"]) == [f"Dataset901_Tiny__{c}" for c in ("tiny_00", "tiny_01", "test")]
    assert table["part"].tolist() == ["imagesTr", "imagesTr", "imagesTs"]
    assert all("label" not in entry for entry in dataset["dataset"].values())
    dataset, _ = run(one, flags=("--no-test-images",), number=746)
    assert len(dataset["dataset"]) == 2
    dataset, table = run(two, number=747)
    assert dataset["channel_names"] == {"0": "MR", "1": "MR"}
    assert [len(entry["images"]) for entry in dataset["dataset"].values()] == [2, 2]
    assert run(two, number=747)[0] == dataset
    with pytest.raises(SystemExit):
        main(["-i", str(one), str(two), "-d", "748", "-n", "Scans"])
    assert "--split-channels" in capsys.readouterr().err
    dataset, table = run(one, two, flags=("--split-channels",), number=748)
    assert len(dataset["dataset"]) == 3 + 4
    assert table["subject"].nunique() == 3


def test_what_is_no_source_says_what_to_do(tmp_path, folders, capsys):
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom/IM1").write_bytes(bytes(128) + b"DICM")
    assert "dcm2niix" in refused(capsys, "-i", tmp_path / "dicom")
    (tmp_path / "none").mkdir()
    assert "holds no image that can be read" in refused(capsys, "-i", tmp_path / "none")
    assert "no file, no folder" in refused(capsys, "-i", tmp_path / "absent")
    save(tmp_path / "x/P_seg.nii.gz")
    assert "called like segmentations" in refused(capsys, "-i", tmp_path / "x")
    assert "no regular expression" in refused(capsys, "-i", tmp_path / "x", "--subject-pattern", "(")
    assert "named groups" in refused(capsys, "-i", tmp_path / "x", "--subject-pattern", "(.*)")


def test_foreign_datasets_and_taken_numbers(tmp_path, folders, tiny_dataset, capsys):
    tiny_dataset(folders["nnUNet_raw"], dataset_id=745)
    image = save(tmp_path / "a.nii.gz")
    before = sorted(p.name for p in (tmp_path / "nnUNet_raw/Dataset745_Tiny").iterdir())
    assert "is taken by Dataset745_Tiny" in refused(capsys, "-i", image)
    with pytest.raises(SystemExit):
        main(["-i", str(image), "-d", "745"])
    assert "did not make" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "nnUNet_raw/Dataset745_Tiny").iterdir()) == before


def test_subject_pattern_filter_channel_and_no_headers(run, tmp_path, capsys):
    for number, name in enumerate(["siteA/P1/one.nii.gz", "siteA/P1/two.nii.gz", "siteB/P2/one.nii.gz"]):
        save(tmp_path / "s" / name, number)
    pattern = "(?P<dataset>site.)/(?P<subject>P[0-9])/"
    dataset, table = run(
        tmp_path / "s", flags=("--subject-pattern", pattern, "--channel-name", "CT", "--filter", 'dataset == "siteA"')
    )
    assert table["subject"].tolist() == ["P1", "P1"]
    assert dataset["channel_names"] == {"0": "CT"}
    dataset, table = run(tmp_path / "s", flags=("--no-headers",), number=746)
    assert table["depth"].isna().all()
    assert (table["bytes"] > 0).all()
    # headers are read later for those that have none
    _, table = run(tmp_path / "s", number=746)
    assert table["depth"].tolist() == [10, 10, 10]


def test_a_pattern_takes_files_that_a_folder_leaves(run, tmp_path):
    save(tmp_path / "s/a_seg.nii.gz", 1)
    save(tmp_path / "s/b.nii.gz", 2)
    dataset, _ = run(tmp_path / "s/*_seg.nii.gz")
    assert list(dataset["dataset"]) == ["a_seg-image"]


def test_sources_that_may_only_be_read(run, tmp_path):
    source = tmp_path / "locked"
    save(source / "a.nii.gz", 1)
    before = {path: path.stat().st_mtime_ns for path in [source, *source.iterdir()]}
    source.chmod(0o555)
    try:
        dataset, _ = run(source)
    finally:
        source.chmod(0o755)
    assert list(dataset["dataset"]) == ["a"]
    assert {path: path.stat().st_mtime_ns for path in [source, *source.iterdir()]} == before


def test_a_missing_file_in_the_registered_dataset_is_found(run, tmp_path):
    save(tmp_path / "s/dwi.nii.gz", 1, volumes=2)
    run(tmp_path / "s")
    folder = str(tmp_path / "nnUNet_raw/Dataset745_Scans")
    assert len(list_images(folder, read_dataset_json(folder))) == 1
    (tmp_path / "s/dwi.nii.gz").unlink()
    with pytest.raises(CorpusError, match="do not exist"):
        list_images(folder, read_dataset_json(folder))


def test_axes_that_are_not_quite_orthogonal_are_read_all_the_same(run, tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    sheared, straight = save(tmp_path / "s/sheared.nii", 3, affine=affine), save(tmp_path / "s/straight.nii", 3)
    raw = bytearray(sheared.read_bytes())
    raw[252:254] = bytes(2)  # qform_code: a quaternion cannot hold shears, and ITK would take it
    sheared.write_bytes(raw)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(sheared))
    _, table = run(tmp_path / "s")
    assert table["problem"].isna().all()
    np.testing.assert_array_equal(
        CorpusReader().read_images([str(sheared)])[0], CorpusReader().read_images([str(straight)])[0]
    )
