"""What preprocessing makes of an image: nnU-Net's values where nnU-Net's are asked for, and where the body is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero as stock_crop
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.ndimage import gaussian_filter

from nnunet_ssl.errors import CorpusError, UnusableImage
from nnunet_ssl.planners.preprocessing.cropping import crop_to_nonzero
from nnunet_ssl.planners.preprocessing.foreground import (
    MAX_LOCATIONS,
    air_threshold,
    is_foreground,
    mask_labels,
    normalised_threshold,
    sample_locations,
)
from nnunet_ssl.planners.preprocessing.normalization import (
    CT,
    MR,
    OTHER,
    SSLCTNormalization,
    SSLMRNormalization,
    SSLPercentileNormalization,
    SSLPerImageNormalization,
    kind_of,
    kinds_of_channels,
    scheme_of_image,
    schemes_for,
)
from nnunet_ssl.planners.preprocessing.resampling import resample
from nnunet_ssl.planners.preprocessing.resampling_choice import faster, unknown_arguments
from nnunet_ssl.planners.preprocessing.storage import save_case, storage_dtype

UNUSED = {"use_mask_for_norm": False, "intensityproperties": {}}


def blobs(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image [2, ...] and labels -1 to 2 [1, ...]."""
    noise = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    smooth = gaussian_filter(noise[0], 2)
    labels = np.digitize(smooth, np.quantile(smooth, [0.3, 0.6, 0.8])).astype(np.int8) - 1
    return noise, labels[None]


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(
    ("shape", "spacing", "target"),
    [
        ((20, 33, 28), (1.0, 1.0, 1.0), (0.7, 1.3, 1.0)),
        ((9, 40, 37), (5.0, 0.8, 0.8), (1.0, 1.0, 1.0)),  # thick slices, one by one
        ((40, 37, 9), (0.8, 0.8, 5.0), (1.0, 1.0, 2.0)),
        ((37, 9, 40), (0.6875, 5.5, 0.6875), (1.0, 5.5, 1.0)),  # exact ties, and as many slices as before
        ((30, 30, 30), (2.0, 2.0, 2.0), (1.0, 1.0, 1.0)),
        ((150, 8, 8), (1.0, 1.0, 1.0), (0.93, 1.0, 1.0)),  # more than one block of the matrix
    ],
)
def test_resampling_is_nnunets(order: int, shape: tuple[int, ...], spacing, target) -> None:
    image, labels = blobs(shape)
    new = compute_new_shape(shape, spacing, target)
    for order_z in (0, 1):
        how = {"order": order, "order_z": order_z, "force_separate_z": None}
        expected = resample_data_or_seg_to_shape(image, new, spacing, target, **how)
        result = resample(image, new, spacing, target, **how)
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    how = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    for seg in (labels, np.minimum(labels, 0), np.zeros_like(labels)):
        expected = resample_data_or_seg_to_shape(seg, new, spacing, target, **how)
        result = resample(seg, new, spacing, target, **how)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def test_only_nnunets_default_resampling_is_replaced() -> None:
    default = partial(resample_data_or_seg_to_shape, is_seg=False, order=3, order_z=0)
    assert faster(default).func is resample
    assert faster(default).keywords == default.keywords
    for other in (
        partial(no_resampling_hack),
        partial(resample_data_or_seg_to_shape, is_seg=True, order=1, order_z=1),
        partial(resample_data_or_seg_to_shape, order=0),
    ):
        assert faster(other) is other


@pytest.mark.parametrize("tiebreak", ["nearest", "lowest", "highest"])
@pytest.mark.parametrize("classes", [2, 4])
def test_labels_that_share_a_voxel(tiebreak: str, classes: int) -> None:
    labels = np.random.default_rng(1).integers(0, classes, (1, 12, 10, 8)).astype(np.int8)
    new = (6, 5, 8)  # halves: every second voxel is shared evenly
    expected = resize_segmentation(labels[0], new, order=1, seg_tiebreak=tiebreak)
    result = resample(labels, new, (1, 1, 1), (2, 2, 1), is_seg=True, order=1, seg_tiebreak=tiebreak)
    np.testing.assert_array_equal(result[0], expected)
    assert tiebreak == "nearest" or (result != resample(labels, new, (1, 1, 1), (2, 2, 1), is_seg=True, order=1)).any()


def test_arguments_of_a_newer_nnunet_are_honoured_or_named() -> None:
    """Plans of the development branch, which says how ties are settled, with this nnU-Net."""
    usual = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}

    def problems(name: str = "resample_data_or_seg_to_shape", **more: Any) -> list[str]:
        return unknown_arguments({"resampling_fn_seg": name, "resampling_fn_seg_kwargs": {**usual, **more}})

    assert faster(partial(resample_data_or_seg_to_shape, **usual, seg_tiebreak="lowest")).func is resample
    assert not problems(seg_tiebreak="highest")
    assert not problems(order=0, seg_tiebreak="lowest")  # where there are no ties
    flat = faster(partial(resample_data_or_seg_to_shape, is_seg=True, order=0, seg_tiebreak="lowest"))
    assert flat(np.zeros((1, 4, 4, 4), np.int8), (2, 2, 2), (1, 1, 1), (2, 2, 2)).shape == (1, 2, 2, 2)
    (problem,) = problems(seg_tiebreak="first")
    assert "nearest, lowest, highest for seg_tiebreak, found 'first'" in problem
    (problem,) = problems(colour="blue")
    assert "holds colour, which resample_data_or_seg_to_shape of the installed nnunetv2" in problem
    assert "pip install --upgrade nnunetv2" in problem
    (problem,) = problems("tiny_resampling_of_nobody")
    assert "no resampling function tiny_resampling_of_nobody" in problem


def test_cropping_is_nnunets() -> None:
    image = np.zeros((2, 20, 22, 24), np.float32)
    image[:, 3:15, 4:18, 5:20] = np.random.default_rng(0).normal(size=(2, 12, 14, 15))
    image[:, 6:9, 8:11, 9:12] = 0  # a hole
    image[:, 3:7, 4:9, 5] = 0  # open to the outside
    image[1, 4, 5, 0] = 1  # outside of the first channel's box
    labels = (image[:1] > 1).astype(np.int16)
    for seg in (None, labels):
        ours = crop_to_nonzero(image, None if seg is None else seg.copy())
        stock = stock_crop(image, None if seg is None else seg.copy())
        for mine, theirs in zip(ours, stock, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert ours[1].dtype == stock[1].dtype
        assert {-1, 0} <= set(np.unique(ours[1]))
    assert crop_to_nonzero(np.zeros((1, 4, 5, 6), np.float32), None)[0].shape == (1, 4, 5, 6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((n, CT) for n in ("CT", "ct_0", "CTA", "CT angio", "cbct")),
        *(
            (n, MR)
            for n in ("T1w", "mr", "MRI", "T2-FLAIR", "ceT1w", "inplaneT2", "t1gd", "T2star", "angio", "adc", "UNIT1")
        ),
        *((n, OTHER) for n in ("PET", "us")),
        *((n, None) for n in ("image", "", None, "CT/MR", "PET/CT", "contrast", "noNorm")),
    ],
)
def test_kind_of(name: str | None, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_schemes_are_one_per_kind_and_each_images_own_where_kinds_are_mixed() -> None:
    ct, mr, percentiles, own = (
        s.__name__
        for s in (SSLCTNormalization, SSLMRNormalization, SSLPercentileNormalization, SSLPerImageNormalization)
    )
    assert schemes_for(["CT", "T1w"]) == [ct, mr]
    assert schemes_for(["image"]) == [percentiles]
    assert schemes_for(["image"], ["T1w", "FLAIR"]) == [mr]
    assert schemes_for(["image"], ["T1w", "CT"]) == schemes_for(["image"], ["T1w", None]) == [own]
    assert schemes_for(["MR"], [None, "T1w"]) == [mr]
    assert kinds_of_channels(["a", "b"], "T1w+CT") == [MR, CT]
    assert scheme_of_image(ct, MR, registered=True) == ct
    assert scheme_of_image(own, MR, registered=True) == mr
    assert scheme_of_image(own, None, registered=True) == percentiles
    with pytest.raises(CorpusError, match=r"name the channel in dataset\.json"):
        scheme_of_image(own, None, registered=False)
    with pytest.raises(CorpusError, match="SSLCTNormalization"):
        SSLPerImageNormalization(**UNUSED).run(np.ones((2, 2, 2)))


def head(air: float = 20.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball in noisy air, and where it is."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij")
    ball = sum(a**2 for a in axes) < 0.6
    values = np.where(ball, generator.normal(500, 90, ball.shape), np.abs(generator.normal(0, air, ball.shape)))
    return values.astype(np.float32), ball


def test_values_of_the_schemes() -> None:
    ct = np.array([-3000.0, -1000.0, 0.0, 250.0, 5000.0], np.float32).reshape(1, 1, 5)
    np.testing.assert_allclose(SSLCTNormalization(**UNUSED).run(ct).ravel(), [-2, -2, 0, 0.5, 2])
    image, ball = head()
    seg = np.zeros(image.shape)
    for scale in (1, 0.001):  # whatever the scanner's units
        result = SSLMRNormalization(**UNUSED).run(image * scale, seg)
        assert result.dtype == np.float32
        assert abs(result[ball].mean()) < 0.02
        assert result[ball].std() == pytest.approx(1, abs=0.02)
        assert result[~ball].max() < -3
    given = SSLMRNormalization(**UNUSED).run(image, seg, ~ball)
    assert abs(given[~ball].mean()) < 1e-4
    result = SSLPercentileNormalization(**UNUSED).run(image, seg)
    assert result.dtype == np.float32
    np.testing.assert_allclose((result.min(), result.max()), (-2, 2), atol=1e-5)
    assert (result[ball] > 1.9999).mean() == pytest.approx(0.005, abs=0.001)
    constant = SSLMRNormalization(**UNUSED).run(np.full((3, 3, 3), 7, np.float32))
    assert np.isfinite(constant).all()


def test_air_is_told_from_tissue() -> None:
    image, ball = head()
    everywhere = np.ones(image.shape, dtype=bool)
    threshold = air_threshold(image, everywhere, MR)
    found = is_foreground(image[None], np.zeros(image.shape), [threshold])
    assert (found == ball).mean() > 0.999
    assert air_threshold(image[8:24, 8:24, 8:24], everywhere[8:24, 8:24, 8:24], MR) is None  # nothing but tissue
    assert air_threshold(image, ball, MR) is None  # the air lies outside of what is looked at
    assert air_threshold(image - 1000, everywhere, CT) == -900
    assert air_threshold(image, everywhere, CT) is None
    spike = image.copy()
    spike[16, 16, 16] = 1e6  # a single voxel does not turn the head into air
    assert (
        is_foreground(spike[None], np.zeros(image.shape), [air_threshold(spike, everywhere, MR)]) == ball
    ).mean() > 0.99
    normalised = (image - image.mean()) / image.std()
    np.testing.assert_array_equal(normalised > normalised_threshold(image, normalised, threshold), image > threshold)


def test_locations_are_foreground_and_always_the_same() -> None:
    _, ball = head()
    places = sample_locations(ball)
    assert places.shape == (MAX_LOCATIONS, 4)
    assert not places[:, 0].any()
    assert ball[tuple(places[:, 1:].T)].all()
    np.testing.assert_array_equal(places, sample_locations(ball))
    assert np.abs(places[:, 1:].mean(0) - 15.5).max() < 1  # from all of it
    few = np.zeros_like(ball)
    few[3, 4, 5] = few[6, 7, 8] = True
    assert sample_locations(few).tolist() == [[0, 3, 4, 5], [0, 6, 7, 8]]
    assert sample_locations(np.zeros_like(ball)).shape == (0, 4)


def test_labels_of_masks() -> None:
    assert mask_labels({"background": 0, "anatomy": 1, "anonymised": 2}) == (1, 2)
    assert mask_labels({"background": 0, "anatomy": 1, "tumour": 2}) == (None, None)
    assert mask_labels({"background": 0}) == (None, None)


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_nnunet_reads_what_is_stored(storage: str, tmp_path: Path) -> None:
    image, _ = head()
    image = ((image - image.mean()) / image.std())[None]
    dtype = storage_dtype({"storage_dtype": storage})
    save_case(image, np.zeros(image.shape, np.int8), {"class_locations": {}}, str(tmp_path / "a"), (16, 16, 16), dtype)
    dataset = nnUNetDatasetBlosc2(str(tmp_path), ["a"])
    stored, seg, _, _ = dataset.load_case("a")
    assert (stored.dtype, seg.dtype) == (dtype, np.int16)
    np.testing.assert_allclose(stored[:], image, rtol=0, atol=0 if storage == "float32" else 2e-3)
    assert max(stored.chunks) <= 24  # half as much again as the patch, nnU-Net's rule
    labels = LabelManager({"background": 0}, None)
    batch = nnUNetDataLoader(dataset, 1, (16, 16, 16), (16, 16, 16), labels).generate_train_batch()
    assert (
        batch["data"].dtype == np.float32
        if isinstance(batch["data"], np.ndarray)
        else batch["data"].is_floating_point()
    )


def test_what_half_precision_cannot_hold_is_no_silent_infinity(tmp_path: Path) -> None:
    image = np.full((1, 8, 8, 8), 1e5, np.float32)
    with pytest.raises(UnusableImage, match="do not fit into float16; store float32"):
        save_case(image, np.zeros_like(image), {}, str(tmp_path / "a"), (8, 8, 8), np.dtype("float16"))
    with pytest.raises(CorpusError, match="float32 or float16, found 'int8'"):
        storage_dtype({"storage_dtype": "int8"})
    assert storage_dtype({}) == np.float32
