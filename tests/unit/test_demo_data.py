from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_ssl.demo.data import LABELLED, LABELS, SCANS, UNLABELLED, write_demo_datasets
from nnunet_ssl.demo.phantom import SHAPE, Phantom, make_phantom


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(np.random.default_rng([0, i])) for i in range(8)]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / max(1, int(a.sum() + b.sum()))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_both_structures_are_there_once_and_apart(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert phantom.image.shape == phantom.labels.shape == SHAPE
        assert np.isfinite(phantom.image).all()
        for label in (1, 2):
            mask = phantom.labels == label
            assert ndimage.label(mask)[1] == 1
            assert 60 < mask.sum() < 1500
            assert not mask[[0, -1]].any()


def test_structures_are_brighter_than_the_organ(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        middle = np.median(phantom.image[phantom.image > np.percentile(phantom.image, 60)])
        assert all(phantom.image[phantom.labels == label].mean() > 1.1 * middle for label in (1, 2))


def test_brightness_alone_does_not_solve_the_task(phantoms: list[Phantom]) -> None:
    """Even the best pair of thresholds per image, chosen knowing the truth, finds mostly other lobes."""
    best: dict[int, list[float]] = {1: [], 2: []}
    for phantom in phantoms:
        smooth = ndimage.gaussian_filter(phantom.image, 0.7)
        levels = np.append(np.quantile(smooth, np.linspace(0.8, 0.999, 25)), np.inf)
        for label, scores in best.items():
            pairs = [(low, high) for i, low in enumerate(levels) for high in levels[i + 1 :]]
            scores.append(max(dice((smooth > a) & (smooth < b), phantom.labels == label) for a, b in pairs))
    assert np.mean(best[1]) < 0.55
    assert np.mean(best[2]) < 0.4


def test_other_lobes_look_like_the_structures(phantoms: list[Phantom]) -> None:
    """Every phantom has background lobes as bright as the structures, of a size that could be one."""
    for phantom in phantoms:
        smooth = ndimage.gaussian_filter(phantom.image, 1.0)
        bright = smooth > 0.9 * np.median(smooth[phantom.labels > 0])
        elsewhere = bright & ~ndimage.binary_dilation(phantom.labels > 0, iterations=2)
        sizes = np.bincount(ndimage.label(elsewhere)[0].ravel())[1:]
        assert (sizes > 60).sum() >= 1


def test_same_seed_same_bytes_other_seed_other_images(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_demo_datasets(tmp_path / name / "nnUNet_raw", seed, 2, 1, 1)
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == set(c)
    volumes = [name for name in a if name.endswith(".nii.gz")]
    assert len(volumes) == 2 + 2 * 2
    assert len({a[name] for name in volumes}) == len(volumes)
    assert all(a[name] != c[name] for name in volumes)


def test_more_volumes_leave_the_others_as_they_are(tmp_path: Path) -> None:
    write_demo_datasets(tmp_path / "few" / "nnUNet_raw", 0, 1, 1, 1)
    write_demo_datasets(tmp_path / "more" / "nnUNet_raw", 0, 2, 2, 2)
    few, more = content(tmp_path / "few"), content(tmp_path / "more")
    assert all(more[name] == data for name, data in few.items() if name.endswith(".nii.gz"))


def test_datasets_are_what_nnunet_reads(tmp_path: Path) -> None:
    raw = tmp_path / "nnUNet_raw"
    write_demo_datasets(raw, 0, 2, 1, 1)
    assert [p.name for p in (raw / UNLABELLED).iterdir()] == ["dataset.json"]
    unlabelled = json.loads((raw / UNLABELLED / "dataset.json").read_text())
    for entry in unlabelled["dataset"].values():
        (image,) = ((raw / UNLABELLED / i).resolve() for i in entry["images"])
        assert image.parent == tmp_path / SCANS
        assert image.is_file()
    assert unlabelled["numTraining"] == len(unlabelled["dataset"]) == 2
    labelled = json.loads((raw / LABELLED / "dataset.json").read_text())
    assert labelled["labels"] == LABELS
    assert labelled["numTraining"] == 2
    splits = json.loads((raw / LABELLED / "splits_final.json").read_text())
    assert splits == [{"train": ["train_000"], "val": ["test_000"]}]
    for case in ("train_000", "test_000"):
        image = sitk.ReadImage(str(raw / LABELLED / "imagesTr" / f"{case}_0000.nii.gz"))
        label = sitk.ReadImage(str(raw / LABELLED / "labelsTr" / f"{case}.nii.gz"))
        assert image.GetSize() == label.GetSize() == SHAPE[::-1]
        assert image.GetSpacing() == label.GetSpacing() == (1, 1, 1)
        assert set(np.unique(sitk.GetArrayFromImage(label))) == set(LABELS.values())


def test_refuses_empty_groups(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one volume"):
        write_demo_datasets(tmp_path, 0, 0, 1, 1)
