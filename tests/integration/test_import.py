"""The real commands on real images: BIDS, CSV, folder and data set, and a pre-training on what was imported."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scan_twins import write_twins

from nnunet_ssl.corpus.table import read_table

MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")


@pytest.fixture
def bids(tmp_path: Path, shared_data: Path) -> Path:
    """The head of brain_mri as a BIDS data set of links: two sessions, an anatomy mask and a defacing mask of the T1w."""
    root = tmp_path / "heads in BIDS"
    for session in ("1", "2"):
        folder = root / f"sub-01/ses-{session}/anat"
        folder.mkdir(parents=True)
        for modality in MODALITIES:
            link = folder / f"sub-01_ses-{session}_{modality}.nii.gz"
            link.symlink_to(shared_data / f"brain_mri/sub-01_{modality}.nii.gz")
    image = nibabel.load(shared_data / "brain_mri/sub-01_T1w.nii.gz")
    head = (np.asarray(image.dataobj) > 100).astype(np.uint8)
    face = np.zeros_like(head)
    face[:, :60] = 1
    masks = root / "derivatives/masks/sub-01/ses-1/anat"
    masks.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(head, image.affine), masks / "sub-01_ses-1_T1w_desc-head_mask.nii.gz")
    face_file = root / "sub-01/ses-1/anat/sub-01_ses-1_mod-T1w_defacemask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(face, image.affine), face_file)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t54\n")
    return root


@pytest.mark.slow
def test_from_bids_to_a_pretrained_network(bids, nnunet_folders, run_command, tmp_path):
    env = {**nnunet_folders, "nnUNet_n_proc_DA": "1"}
    done = run_command(["nnUNetv2_pretrain_import", "-i", bids, "-d", "745", "-n", "Heads"], env)
    assert "8 new images, 8 in all" in done.stdout
    folder = Path(nnunet_folders["nnUNet_raw"]) / "Dataset745_Heads"
    assert sorted(p.name for p in folder.iterdir()) == ["corpus.parquet", "dataset.json"]
    page = tmp_path / "page.html"
    shown = run_command(["nnUNetv2_pretrain_corpus", "-d", "745", "--html", page, "-np", "1"], env).stdout
    assert "22 x 320 x 280" in shown
    assert "4 files repeat the content of others" in shown
    assert page.stat().st_size > 50_000
    flags = [
        "--method",
        "mae",
        "--backbone",
        "primus_tiny",
        "--spacing",
        "median",
        "--epochs",
        "1",
        "--batch-size",
        "2",
    ]
    short = ["--iterations-per-epoch", "2", "--val-iterations-per-epoch", "1", "-np", "1", "-device", "cpu"]
    wanted = ["--filter", "modality in ('T1w', 'FLAIR') and slices >= 20"]
    trained = run_command(["nnUNetv2_pretrain", "745", *flags, *short, *wanted], env)
    assert "4 cases that the filter leaves out are not preprocessed" in trained.stdout
    assert "keeps 4 of 4 of Dataset745_Heads" in trained.stdout
    assert len(read_table(str(Path(nnunet_folders["nnUNet_preprocessed"]) / "Dataset745_Heads"))) == 8
    checkpoint = next(Path(nnunet_folders["nnUNet_results"]).rglob("checkpoint_final.pth"))
    assert str(checkpoint) in trained.stdout
    assert torch.load(checkpoint, weights_only=True)["network_weights"]
    import blosc2

    segmentation = next(Path(nnunet_folders["nnUNet_preprocessed"]).rglob("*ses-1_T1w_seg.b2nd"))
    assert {0, 1, 2} <= set(np.unique(blosc2.open(str(segmentation), mode="r")[:]))


def test_brain_as_csv_ct_and_hippocampus(shared_data, nnunet_folders, tmp_path, monkeypatch):
    from nnunet_ssl.cli.import_corpus import main

    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    raw = Path(nnunet_folders["nnUNet_raw"])
    lines = [f"{shared_data}/brain_mri/sub-01_{m}.nii.gz,sub-01,{m}" for m in MODALITIES]
    (tmp_path / "list.csv").write_text("\n".join(["path,subject,modality", *lines]) + "\n")
    main(["-i", str(tmp_path / "list.csv"), "-d", "1", "-n", "Csv"])
    table = read_table(str(raw / "Dataset001_Csv"))
    assert table[["depth", "height", "width", "slices"]].to_numpy().tolist() == [[22, 320, 280, 22]] * 4
    np.testing.assert_allclose(table["spacing_z"].to_numpy(dtype=float), 6.5, atol=1e-4)

    main(["-i", str(shared_data / "ct"), "-d", "2", "-n", "Ct", "--channel-name", "CT"])
    dataset = json.loads((raw / "Dataset002_Ct/dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "CT"}
    assert list(dataset["dataset"]) == ["ct_small"]

    hippocampus = shared_data / "Dataset004_Hippocampus"
    main(["-i", str(hippocampus), "-d", "3", "-n", "AsDataset"])
    main(["-i", str(hippocampus / "imagesTr"), "-d", "5", "-n", "AsFolder"])
    as_dataset, as_folder = read_table(str(raw / "Dataset003_AsDataset")), read_table(str(raw / "Dataset005_AsFolder"))
    assert len(as_dataset) == len(as_folder) == 180
    assert sorted(as_dataset["path"]) == sorted(as_folder["path"])
    assert as_dataset["problem"].isna().all()


def test_the_made_up_twins_are_like_the_real_images(shared_data, tmp_path):
    """Where the real ones are not there, the other tests run on these."""
    write_twins(tmp_path)
    for name in [*(f"brain_mri/sub-01_{m}.nii.gz" for m in MODALITIES), "ct/ct_small.nii.gz", "ct/ct_small_seg.nii.gz"]:
        real, twin = (nibabel.load(folder / name) for folder in (shared_data, tmp_path))
        assert (real.shape, real.get_data_dtype()) == (twin.shape, twin.get_data_dtype())
        np.testing.assert_allclose(real.header.get_zooms(), twin.header.get_zooms(), rtol=1e-4)
        assert nibabel.aff2axcodes(real.affine) == nibabel.aff2axcodes(twin.affine)
    real, twin = ({p.name for p in (f / "Dataset004_Hippocampus").rglob("*.nii.gz")} for f in (shared_data, tmp_path))
    assert len(real) == len(twin)
