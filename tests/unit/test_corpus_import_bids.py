"""Importing BIDS, OpenMind and pretrain_data.json: what of their descriptions reaches the table, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from nnunet_ssl.cli.corpus import main as corpus_command
from nnunet_ssl.cli.import_corpus import main
from nnunet_ssl.corpus.sources.kinds import kind_of
from nnunet_ssl.corpus.sources.pretrain_data import find_in_pretrain_data
from nnunet_ssl.corpus.subjects import subjects_of
from nnunet_ssl.corpus.table import read_table
from nnunet_ssl.errors import CorpusError

SHAPE = (10, 11, 12)


@pytest.fixture
def raw(nnunet_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, folder in nnunet_folders.items():
        monkeypatch.setenv(name, folder)
    return Path(nnunet_folders["nnUNet_raw"])


def save(path: Path, shape: tuple[int, ...] = SHAPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), path)
    return path


def register(raw: Path, source: Path, *flags: str) -> pd.DataFrame:
    main(["-i", str(source), "-d", "745", "-n", "Scans", *flags])
    return read_table(str(raw / "Dataset745_Scans")).set_index("case")


def make_bids(root: Path) -> Path:
    for subject, session in (("01", "a"), ("01", "b"), ("02", "a")):
        folder = root / f"sub-{subject}/ses-{session}"
        name = f"sub-{subject}_ses-{session}"
        save(folder / f"anat/{name}_T1w.nii.gz")
        save(folder / f"anat/{name}_run-1_T2w.nii.gz", (10, 11, 20))
        save(folder / f"dwi/{name}_dwi.nii.gz", (*SHAPE, 3))
        save(folder / f"anat/{name}_mod-T1w_defacemask.nii.gz")
        save(root / f"derivatives/pipe/sub-{subject}/ses-{session}/anat/{name}_desc-brain_mask.nii.gz")
        save(root / f"derivatives/pipe/sub-{subject}/ses-{session}/anat/{name}_space-MNI152_desc-brain_mask.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.8.0"}')
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsession\nsub-01\t31\tx\nsub-02\tn/a\ty\nsub-03\t5\tz\n"
    )
    (root / "T1w.json").write_text('{"EchoTime": 0.003, "Manufacturer": "A", "ImageType": ["x"]}')
    (root / "sub-02/ses-a/anat/sub-02_ses-a_T1w.json").write_text('{"EchoTime": 0.005}')
    return root


def test_bids(raw, tmp_path, capsys):
    table = register(raw, make_bids(tmp_path / "brains"))
    assert kind_of(str(tmp_path / "brains")) == "bids"
    assert len(table) == 9
    case = "brains__sub-02_ses-a_T1w"
    assert table.loc[case, ["subject", "session", "modality", "dataset", "datatype"]].tolist() == [
        "sub-02",
        "ses-a",
        "T1w",
        "brains",
        "anat",
    ]
    assert table.loc[case, ["EchoTime", "Manufacturer"]].tolist() == [0.005, "A"]
    assert table.loc["brains__sub-01_ses-b_T1w", ["EchoTime", "age", "participant_session"]].tolist() == [
        0.003,
        31,
        "x",
    ]
    assert pd.isna(table.loc[case, "age"])
    assert pd.isna(table.loc["brains__sub-02_ses-a_run-1_T2w", "EchoTime"])
    t1 = table[table["modality"] == "T1w"]
    assert t1["anatomy_mask"].str.endswith("_desc-brain_mask.nii.gz").all()
    assert not t1["anatomy_mask"].str.contains("MNI").any()
    assert t1["anonymisation_mask"].str.endswith("_mod-T1w_defacemask.nii.gz").all()
    # the mask names no image: it belongs to those of its shape, and the T2w has another
    assert table[table["modality"] != "T1w"][["anatomy_mask", "anonymisation_mask"]].isna().all(axis=None)
    assert table.loc["brains__sub-01_ses-a_dwi", "volume"] == "0"
    printed = capsys.readouterr().out
    assert "3 files are 4-D series" in printed
    assert "1 participants have no folder, e.g. sub-03" in printed
    people = subjects_of(str(raw / "Dataset745_Scans"), table.index)
    assert people["brains__sub-01_ses-a_T1w"] == people["brains__sub-01_ses-b_T1w"] == "brains/sub-01"


def test_mistakes_in_bids_are_reported_all_at_once(raw, tmp_path, capsys):
    root = make_bids(tmp_path / "brains")
    save(root / "sub-01/ses-a/anat/sub-02_ses-a_T1w.nii.gz")
    save(root / "sub-01/ses-a/anat/sub-01_ses-b_FLAIR.nii.gz")
    save(root / "sub-01/ses-a/anat/sub-01_ses-a.nii.gz")
    (root / "sub-02/ses-a/anat/sub-02_ses-a_PDw.nii.gz").symlink_to("/nowhere/.git/annex/objects/x")
    (root / "T2w.json").write_text("{broken")
    save(root / "sub-04/anat/sub-04_T1w.nii.gz")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t3\nsub-01\t4\n02\t5\n")
    with pytest.raises(SystemExit):
        main(["-i", str(root), "-d", "745", "-n", "Scans"])
    lines = capsys.readouterr().err.splitlines()
    for where, reason in [
        ("sub-01/ses-a/anat/sub-02_ses-a_T1w.nii.gz", "should begin with sub-01_"),
        ("sub-01/ses-a/anat/sub-01_ses-b_FLAIR.nii.gz", "should contain ses-a"),
        ("sub-01/ses-a/anat/sub-01_ses-a.nii.gz", "without a suffix"),
        ("sub-02/ses-a/anat/sub-02_ses-a_PDw.nii.gz", "datalad get"),
        ("T2w.json", "not valid JSON"),
        ("participants.tsv, row 3", "listed before"),
        ("participants.tsv, row 4", "'02', expected sub-<label>"),
        ("participants.tsv", "sub-02 has a folder and no row"),
        ("participants.tsv", "sub-04 has a folder and no row"),
    ]:
        assert any(where in line and reason in line for line in lines), (where, reason)
    assert not list(raw.iterdir())


def make_openmind(root: Path) -> Path:
    rows = [
        ("ds000001/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "T1w", 1.5, None),
        ("ds000001/sub-01/ses-1/dwi/sub-01_ses-1_dwi__FA/FA.nii.gz", "FA", 4.0, "dwi"),
        ("ds000002/sub-01/anat/sub-01_T2w.nii.gz", "T2w", 2.0, None),
    ]
    lines = []
    for path, modality, score, derived in rows:
        save(root / "OpenMind" / path)
        masks = {}
        if modality == "T1w":
            masks = {kind: path.replace("_T1w", f"_T1w_{kind}") for kind in ("anat", "anon")}
            for mask in masks.values():
                save(root / "OpenMind" / mask)
        lines.append(
            {
                "unique_id": path[:8],
                "image_path": path,
                "anat_mask_path": masks.get("anat"),
                "anon_mask_path": masks.get("anon"),
                "modality": modality,
                "image_quality_score": score,
                "derived_from": derived,
                "age": 40,
                "sex": "F",
            }
        )
    pd.DataFrame(lines).to_csv(root / "openneuro_metadata.csv", index=False)
    return root


def test_openmind(raw, tmp_path):
    table = register(raw, make_openmind(tmp_path / "download"))
    assert kind_of(str(tmp_path / "download")) == "openmind"
    assert table["dataset"].tolist() == ["ds000001", "ds000001", "ds000002"]
    assert table["session"].tolist() == ["ses-1", "ses-1", "ses-DEFAULT"]
    assert table["iqs"].tolist() == [1.5, 4.0, 2.0]
    assert table.index[0] == "ds000001__sub-01_ses-1_T1w"
    assert table["anonymisation_mask"].notna().tolist() == [True, False, False]
    # the same label in two data sets is two people
    assert len(set(subjects_of(str(raw / "Dataset745_Scans"), table.index).values())) == 2
    (tmp_path / "download/OpenMind" / "ds000002/sub-01/anat/sub-01_T2w.nii.gz").unlink()
    with pytest.raises(SystemExit):
        main(["-i", str(tmp_path / "download"), "-d", "746", "-n", "Part"])
    main(["-i", str(tmp_path / "download"), "-d", "746", "-n", "Part", "--lenient"])
    assert len(read_table(str(raw / "Dataset746_Part"))) == 2


def test_pretrain_data_there_and_back(raw, tmp_path):
    before = register(raw, make_openmind(tmp_path / "download"))
    exported = tmp_path / "pretrain_data.json"
    corpus_command(["-d", "745", "--export-pretrain-data", str(exported), "--sample", "0", "-np", "1"])
    content = json.loads(exported.read_text())
    dataset = content["datasets"]["ds000001"]
    assert str(dataset["dataset_index"]) == "ds000001"
    image = dataset["subjects"]["sub-01"]["sessions"]["ses-1"]["images"][0]
    # what nnssl's reader needs, and nothing it does not know
    assert set(image) == {"name", "modality", "image_info", "image_path", "associated_masks"}
    assert set(image["associated_masks"]) == {"anonymization_mask", "anatomy_mask"}
    assert dataset["subjects"]["sub-01"]["subject_info"] == {"age": 40, "sex": "F"}
    assert {"modality": "FA", "derived_from": "dwi", "image_quality_score": 4.0} in dataset["dataset_info"][
        "image_quality_score"
    ]
    main(["-i", str(exported), "-d", "746", "-n", "Back"])
    after = read_table(str(raw / "Dataset746_Back"))
    same = [
        "path",
        "subject",
        "session",
        "modality",
        "dataset",
        "anatomy_mask",
        "anonymisation_mask",
        "iqs",
        "age",
        "sex",
    ]
    pd.testing.assert_frame_equal(after[same], before[same].reset_index(drop=True), check_dtype=False)


def test_pretrain_data_with_variables_and_mistakes(tmp_path, monkeypatch):
    save(tmp_path / "a.nii.gz")
    monkeypatch.setenv("nnssl_raw", str(tmp_path))
    images = [
        {"name": "a.nii.gz", "modality": "T1w", "image_path": "$nnssl_raw/a.nii.gz", "image_info": {"modality": "x"}},
        {"name": "b", "modality": "T1w", "image_path": "$UNSET_FOLDER/b.nii.gz"},
        {"name": "c", "modality": "T1w", "image_path": "$nnssl_raw/c.nii.gz", "associated_masks": None},
        {"name": "d", "image_path": "x"},
    ]
    sessions = {"ses-1": {"session_id": "ses-1", "images": images}, "ses-2": {"session_id": "ses-2"}}
    content = {"datasets": {"7": {"subjects": {"P": {"sessions": sessions}}}, "8": {}}}
    path = tmp_path / "pretrain_data.json"
    path.write_text(json.dumps(content))
    found = find_in_pretrain_data(str(path))
    assert found.table["path"].tolist() == [str(tmp_path / "a.nii.gz")]
    assert found.table[["dataset", "subject", "session", "modality", "image_info_modality"]].iloc[0].tolist() == [
        "7",
        "P",
        "ses-1",
        "T1w",
        "x",
    ]
    assert found.table["name"].tolist() == ["7__P__ses-1__a"]
    reasons = " | ".join(map(str, found.mistakes))
    for reason in (
        "UNSET_FOLDER is not set",
        "there is no such file",
        "modality is missing",
        "images is missing",
        "subjects",
    ):
        assert reason in reasons
    assert len(found.mistakes) == 5
    path.write_text("[]")
    with pytest.raises(CorpusError, match="has no datasets"):
        find_in_pretrain_data(str(path))
