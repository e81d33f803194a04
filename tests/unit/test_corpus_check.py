"""Reasons to leave an image out."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ssl.corpus import left_out
from nnunet_ssl.corpus.check import check_cropped_shape, check_image, check_resampled_shape
from nnunet_ssl.corpus.reading import damage, describe_failure

MM = {"spacing": [1.0, 1.0, 1.0]}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_a_good_image_passes() -> None:
    assert check_image(noise(1, 8, 9, 10), MM, num_channels=1) is None
    assert check_image(noise(2, 8, 9, 10), MM) is None
    assert check_image(noise(1, 1, 32, 32), MM, flat_allowed=True) is None


def test_one_constant_channel_is_a_missing_sequence() -> None:
    image = noise(2, 8, 8, 8)
    image[1] = 0
    assert check_image(image, MM) is None
    image[0] = 3
    assert "constant" in str(check_image(image, MM))


@pytest.mark.parametrize(
    ("image", "properties", "reason"),
    [
        (noise(8, 8, 8), MM, "not a volume"),
        (noise(3, 8, 8, 8), MM, "4-D: 3 volumes"),
        (noise(1, 0, 8, 8), MM, "no voxels"),
        (noise(1, 1, 32, 32), MM, "single slice"),
        (noise(1, 7, 7, 7), MM, "too small: 7 x 7 x 7"),
        (noise(1, 8, 8, 8), {}, "impossible spacing"),
        (noise(1, 8, 8, 8), {"spacing": [1, 0, 1]}, "impossible spacing"),
        (noise(1, 8, 8, 8), {"spacing": [1, -1, 1]}, "impossible spacing"),
        (noise(1, 8, 8, 8), {"spacing": [1, float("nan"), 1]}, "impossible spacing"),
        (noise(1, 8, 8, 8) * 0, MM, "empty"),
        (noise(1, 8, 8, 8) * 0 + 5, MM, "constant: every voxel is 5"),
        (np.where(noise(1, 8, 8, 8) > 2, np.nan, 1), MM, "NaN"),
        (np.where(noise(1, 8, 8, 8) > 2, np.inf, 1), MM, "infinite"),
    ],
)
def test_unusable(image: np.ndarray, properties: dict[str, list[float]], reason: str) -> None:
    assert reason in str(check_image(image, properties, num_channels=1))


def test_too_many_channels() -> None:
    assert check_image(noise(3, 8, 8, 8), MM, num_channels=2) == "3 channels, dataset.json names 2"


def test_sizes_after_cropping_and_resampling() -> None:
    assert check_cropped_shape((8, 8, 8)) is None
    assert "almost empty" in str(check_cropped_shape((8, 8, 7)))
    assert check_resampled_shape((160, 160, 160), (1, 1, 1)) is None
    assert "too thin" in str(check_resampled_shape((160, 0, 160), (1, 1, 1)))
    assert "spacing in its header" in str(check_resampled_shape((5000, 5000, 5000), (1, 1, 1)))


def write(path: Path, compressed: bool = True) -> bytes:
    sitk.WriteImage(sitk.GetImageFromArray(noise(12, 12, 12)), str(path), compressed)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_nifti_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = write(path)
    assert damage(str(path)) is None
    path.write_bytes(content[: len(content) // 2])
    # This is why the check exists: ITK fills up with zeros and says nothing.
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == 0).mean() > 0.3
    assert "truncated" in str(damage(str(path)))


def test_gzip_in_several_pieces_is_whole(tmp_path: Path) -> None:
    content = gzip.decompress(write(tmp_path / "a.nii.gz"))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:3000]) + gzip.compress(content[3000:]))
    assert damage(str(tmp_path / "b.nii.gz")) is None
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(content[:3000]))
    assert "truncated: 3000 bytes" in str(damage(str(tmp_path / "c.nii.gz")))


def test_text_is_not_gzip_and_other_formats_are_left_to_itk(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_text("hello")
    assert "not a gzip file" in str(damage(str(tmp_path / "a.nii.gz")))
    (tmp_path / "a.mha").write_text("hello")
    assert damage(str(tmp_path / "a.mha")) is None


def test_reading_errors_fit_on_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_text("hello")
    with pytest.raises(RuntimeError) as caught:
        sitk.ReadImage(str(tmp_path / "a.mha"))
    line = describe_failure(caught.value)
    assert line.startswith("cannot be read: ")
    assert "\n" not in line
    assert len(line) < 270
    assert describe_failure(RuntimeError()) == "cannot be read: the files of its channels do not fit together"
    assert describe_failure(KeyError("x")) == "KeyError: 'x'"


def test_left_out_cases_are_merged_and_forgotten(tmp_path: Path) -> None:
    image = tmp_path / "a.nii.gz"
    image.touch()
    cases = {name: {"images": [str(image)]} for name in "abc"}
    folder = str(tmp_path)
    left_out.update_left_out(folder, [], {})
    assert not (tmp_path / left_out.FILE).exists()
    left_out.update_left_out(folder, "abc", {n: left_out.left_out_row(cases[n], "why", "fingerprint") for n in "ab"})
    left_out.update_left_out(folder, "bc", {"c": left_out.left_out_row(cases["c"], "too", "preprocessing")})
    written = json.loads((tmp_path / left_out.FILE).read_text())
    assert {name: entry["reason"] for name, entry in written.items()} == {"a": "why", "c": "too"}
    assert written["a"]["files"] == [str(image)]
    assert left_out.still_left_out(folder, {"a": cases["a"]}) == {"a"}
    assert left_out.still_left_out(folder, {"a": {"images": ["other"]}}) == set()
    assert "a: why" in left_out.report(written, 3, folder)
    later = image.stat().st_mtime + 10
    os.utime(image, (later, later))
    assert left_out.still_left_out(folder, cases) == set()  # repaired, perhaps
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", left_out.FILE]
