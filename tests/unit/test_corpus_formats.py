"""Every format's header says what its reader reads: shape, spacing in mm, volumes; DICOM series as volumes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from image_files import SPACING, UNITS, save_dicom, save_nifti
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ssl.corpus.formats import dicom
from nnunet_ssl.corpus.headers import read_header
from nnunet_ssl.corpus.reader import CorpusReader
from nnunet_ssl.corpus.reading import NOT_FINITE, read_case
from nnunet_ssl.corpus.sources.folder import find_in_folder
from nnunet_ssl.errors import UnusableImage

SHAPE = (10, 12, 14)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1), (*SHAPE, 3), (*SHAPE, 1, 4), (*SHAPE, 4, 1), (*SHAPE, 1, 1)])
def test_nifti_headers_and_readers_agree(tmp_path: Path, unit: str, shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    path = save_nifti(tmp_path / "image.nii.gz", array, unit)
    header = read_header(path)
    volumes = array.reshape(*SHAPE, -1)
    assert (header.shape, header.volumes) == (SHAPE[::-1], volumes.shape[-1])
    np.testing.assert_allclose(header.spacing, SPACING[::-1], rtol=1e-5)
    for number in range(header.volumes):
        address = f"{path}::volume={number}" if header.volumes > 1 else path
        image, properties = read_case(CorpusReader, [address])
        np.testing.assert_array_equal(image[0], volumes[..., number].T)
        np.testing.assert_allclose(properties["spacing"], SPACING[::-1], rtol=1e-5)
    if header.volumes > 1:
        mean, properties = read_case(CorpusReader, [f"{path}::volume=mean"])
        np.testing.assert_allclose(mean[0], volumes.mean(axis=-1).T, atol=1e-6)
        np.testing.assert_allclose(properties["spacing"], SPACING[::-1], rtol=1e-5)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, CorpusReader])
@pytest.mark.parametrize("unit", UNITS)
def test_every_reader_of_nnunet_gives_millimetres(tmp_path: Path, unit: str, reader: type) -> None:
    path = save_nifti(tmp_path / "image.nii.gz", noise(*SHAPE), unit)
    np.testing.assert_allclose(read_case(reader, [path])[1]["spacing"], SPACING[::-1], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha", "mgz"])
def test_values_that_are_not_finite_are_counted_and_become_0(tmp_path: Path, ending: str, value: float) -> None:
    array = noise(*SHAPE)
    array[1, 2, 3] = array[3, 2, 1] = value
    path = str(tmp_path / f"image.{ending}")
    if ending in ("nrrd", "mha"):
        sitk.WriteImage(sitk.GetImageFromArray(array.T), path)
    else:
        nibabel.save((nibabel.MGHImage if ending == "mgz" else nibabel.Nifti1Image)(array, np.eye(4)), path)
    for reader in [CorpusReader] if ending == "mgz" else [CorpusReader, SimpleITKIO]:
        image, properties = read_case(reader, [path])
        assert properties[NOT_FINITE] == 2
        np.testing.assert_array_equal(image[0], np.where(np.isfinite(array), array, 0).T)
    array[1, 2, 3] = array[3, 2, 1] = 0
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "zeros.nii.gz")
    assert NOT_FINITE not in read_case(CorpusReader, [str(tmp_path / "zeros.nii.gz")])[1]


@pytest.mark.parametrize(
    "kind", [nibabel.AnalyzeImage, nibabel.Spm99AnalyzeImage, nibabel.Nifti1Pair, nibabel.MGHImage]
)
def test_other_formats_of_the_neuroimaging_world(tmp_path: Path, kind: Any) -> None:
    array = noise(*SHAPE)
    path = tmp_path / ("image.mgz" if kind is nibabel.MGHImage else "image.img")
    nibabel.save(kind(array, np.diag([*SPACING, 1.0])), path)
    header = read_header(str(path))
    image, properties = read_case(CorpusReader, [str(path)])
    assert header.shape == image.shape[1:] == SHAPE[::-1]
    np.testing.assert_allclose(header.spacing, SPACING[::-1], rtol=1e-5)
    np.testing.assert_allclose(properties["spacing"], SPACING[::-1], rtol=1e-5)
    np.testing.assert_array_equal(image[0], array.T)
    if path.suffix == ".img":
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UnusableImage, match="truncated"):
            read_header(str(path))
        path.unlink()
        with pytest.raises(UnusableImage, match="half of a pair"):
            read_header(str(path.with_suffix(".hdr")))


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("vector", [False, True])
def test_volumes_of_nrrd_and_metaimage(tmp_path: Path, ending: str, vector: bool) -> None:
    series, path = noise(5, *SHAPE[::-1]), str(tmp_path / f"series.{ending}")
    if vector:
        image = sitk.GetImageFromArray(np.moveaxis(series, 0, -1), isVector=True)
    else:
        image = sitk.JoinSeries([sitk.GetImageFromArray(volume) for volume in series])
    image.SetSpacing((*SPACING, 1.0)[: image.GetDimension()])
    sitk.WriteImage(image, path)
    header = read_header(path)
    assert (header.shape, header.volumes, header.spacing) == (SHAPE[::-1], 5, SPACING[::-1])
    for number, volume in enumerate(series):
        read, properties = read_case(CorpusReader, [f"{path}::volume={number}"])
        np.testing.assert_array_equal(read[0], volume)
        assert properties["spacing"] == list(SPACING[::-1])
    with pytest.raises(UnusableImage, match="has 5 volumes, number 5"):
        read_case(CorpusReader, [f"{path}::volume=5"])


def test_what_is_no_series_of_volumes_is_said(tmp_path: Path) -> None:
    colour = sitk.GetImageFromArray(np.zeros((*SHAPE[::-1], 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "colour.mha"))
    with pytest.raises(UnusableImage, match="colour"):
        read_header(str(tmp_path / "colour.mha"))
    vectors = sitk.GetImageFromArray(noise(*SHAPE[::-1], 3), isVector=True)
    for ending in ("nrrd", "mha"):
        sitk.WriteImage(vectors, str(tmp_path / f"warp.{ending}"))
        with pytest.raises(UnusableImage, match="colour or vector image: 3 values"):
            read_header(str(tmp_path / f"warp.{ending}"))
    first = save_nifti(tmp_path / "first.nii.gz", noise(4, 30, 32, 34))
    with pytest.raises(UnusableImage, match=r"first axis.*\[4, 30, 32, 34\].*moveaxis"):
        read_header(first)
    deformation = nibabel.Nifti1Image(noise(*SHAPE, 1, 3), np.eye(4))
    deformation.header.set_intent(1007)
    nibabel.save(deformation, tmp_path / "warp.nii.gz")
    with pytest.raises(UnusableImage, match="field of vectors"):
        read_header(str(tmp_path / "warp.nii.gz"))
    with pytest.raises(UnusableImage, match="5-D"):
        read_header(save_nifti(tmp_path / "five.nii.gz", noise(*SHAPE, 2, 3)))


def test_a_dicom_file_stands_for_its_series(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(-1000, 2000, (9, 12, 10)).astype(np.int16)
    other = volume[::-1] + 5
    save_dicom(tmp_path / "study", volume)
    save_dicom(tmp_path / "study", other, series="1.2.4")
    found = dicom.series_in(str(tmp_path / "study"))
    assert {uid[:5]: len(slices) for uid, slices in found.items()} == {"1.2.3": 9, "1.2.4": 9}
    for uid, slices in found.items():
        for file in (slices[0].file, slices[5].file):  # any of them
            header = read_header(file)
            image, properties = read_case(CorpusReader, [file])
            assert header.shape == image.shape[1:] == (9, 12, 10)
            assert list(header.spacing) == properties["spacing"] == [2.5, 1.5, 1.0]
            assert header.orientation == "LPS"
            np.testing.assert_array_equal(image[0], volume if uid.startswith("1.2.3") else other)


@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        (np.array([[0, 0, 2.5 * n + 2.5 * (n > 4)] for n in range(9)]), "slices are missing"),
        (np.array([[0, 0, 2.5 * (n // 3)] for n in range(9)]), "9 slices at 3 places"),
        (np.array([[0, 0.8 * n, 2.5 * n] for n in range(9)]), "tilted gantry"),
    ],
)
def test_series_that_make_no_even_stack_are_refused(tmp_path: Path, positions: np.ndarray, reason: str) -> None:
    save_dicom(tmp_path, np.arange(9 * 120, dtype=np.int16).reshape(9, 12, 10), positions=positions)
    with pytest.raises(UnusableImage, match=f"{reason}.*dcm2niix"):
        read_header(str(next(tmp_path.iterdir())))


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    save_dicom(tmp_path, np.zeros((1, 12, 10), np.int16))
    with pytest.raises(UnusableImage, match="single slice"):
        read_header(str(next(tmp_path.iterdir())))


def test_dicom_series_in_folders_are_found_and_read_where_they_lie(tmp_path: Path) -> None:
    volume = np.arange(9 * 120, dtype=np.int16).reshape(9, 12, 10)
    for patient in ("A", "B"):
        save_dicom(tmp_path / f"scans/{patient}", volume, series=f"1.2.{ord(patient)}", patient=patient)
    save_dicom(tmp_path / "scans/A", volume, series="1.3", patient="A", description="ax FLAIR")
    save_dicom(tmp_path / "scans/A", volume[:1], series="1.4", description="localizer")
    save_dicom(tmp_path / "scans/B", volume, series="1.5", modality="SEG")
    save_dicom(tmp_path / "scans/B", volume, series="1.6", modality="CT", patient="B", description="")
    found = find_in_folder(str(tmp_path / "scans"))
    rows = found.table.sort_values("name")
    assert rows["name"].tolist() == ["A_s004_T1_MPRAGE_sag", "A_s004_ax_FLAIR", "B_s004", "B_s004_T1_MPRAGE_sag"]
    assert rows["modality"].tolist() == ["T1", "FLAIR", "CT", "T1"]
    assert rows["subject"].tolist() == ["A", "A", "B", "B"]
    assert set(rows["session"]) == {"20190303"}
    notes = "\n".join(found.notes)
    assert "1 DICOM series left alone: a single slice." in notes
    assert "1 DICOM series left alone: no images (SEG)." in notes
    assert "4 DICOM series are read where they lie" in notes
    by_path = find_in_folder(str(tmp_path / "scans"), re.compile("(?P<subject>[AB])/")).table
    assert sorted(by_path["subject"]) == ["A", "A", "B", "B"]
    assert not by_path["session"].notna().any()  # what the headers say of the patient stays out
    for path in rows["path"]:
        np.testing.assert_array_equal(read_case(CorpusReader, [path])[0][0], volume)
