"""What is read for a patch, and where patches lie."""

from __future__ import annotations

import json
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.preprocessing.foreground import LOCATIONS, SHARE
from nnunet_ssl.planners.sharing.finished import discard
from nnunet_ssl.trainers.data import batches
from nnunet_ssl.trainers.data.augmentation import Augmentation
from nnunet_ssl.trainers.data.batches import Chunks, Positions, load_batches
from nnunet_ssl.trainers.data.corpus import Corpus, CorpusDataset, read_box, storage_and_cases
from nnunet_ssl.trainers.data.patch_sampler import AROUND_ANATOMY, PatchSampler, around
from nnunet_ssl.trainers.data.patches import PatchDataset
from nnunet_ssl.trainers.data.sampling_locations import SamplingLocations
from nnunet_ssl.views.spec import Views

SHAPE = (30, 24, 20)


def save(folder: Path, case: str, image: np.ndarray, labels: np.ndarray | None = None, **properties) -> None:
    folder.mkdir(exist_ok=True)
    labels = np.zeros((1, *image.shape[1:]), np.int16) if labels is None else labels
    parts = ((1, *image.shape[1:]), (1, *image.shape[1:]))
    nnUNetDatasetBlosc2.save_case(image.astype(np.float32), labels, properties, str(folder / case), *parts)


def numbered(channels: int = 1) -> np.ndarray:
    """Every voxel's value says where it is; channels differ by 1,000,000."""
    place = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    return np.stack([place + 1_000_000 * c for c in range(channels)])


def dataset(datasets, size=(8, 8, 8), *, min_foreground=0.0, weights=None, views=None, **kwargs) -> PatchDataset:
    datasets = datasets if isinstance(datasets, list) else [datasets]
    corpus = Corpus(datasets, Corpus.all_identifiers(datasets))
    places = PatchSampler(corpus, min_foreground)
    kwargs = {"seed": 0, "stream": 0, "separate_channels": True, **kwargs}
    return PatchDataset(corpus, views or Views(size, size), Augmentation(size), places, weights=weights, **kwargs)


def corner(patch: dict) -> tuple[int, ...]:
    """Where the first voxel of a patch of a numbered image lies."""
    return tuple(int(i) for i in np.unravel_index(int(patch["image"].flatten()[0]) % 1_000_000, SHAPE))


@pytest.mark.parametrize("start", [(3, 4, 5), (-2, 4, 15), (25, -5, -30)])
def test_box_is_cut_as_nnunet_does(start):
    image = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    expected = crop_and_pad_nd(image, [[s, s + 9] for s in start], 0)
    np.testing.assert_array_equal(read_box(image, start, (9, 9, 9)).numpy(), expected)
    np.testing.assert_array_equal(read_box(image, start, (9, 9, 9), channel=1).numpy(), expected[1:])


def test_what_lies_beyond_the_image_is_excluded(tmp_path):
    """In patches and in the centres of held-out cases; every voxel of the image is above 0, padding is 0."""
    save(tmp_path / "A", "case", numbered() + 1.0)
    source = CorpusDataset("A", str(tmp_path / "A"))
    for size in ((8, 8, 8), (8, 30, 25), (40, 40, 40)):
        patch = dataset(source, size)[0]
        assert torch.equal(patch["excluded"], patch["image"] == 0)
        centre = Corpus([source], ["A/case"]).centre_crop("A/case", size)
        assert torch.equal(centre["excluded"], centre["image"] == 0)
        assert patch["excluded"].any() == (size != (8, 8, 8))


@pytest.mark.parametrize("start", [(0, 0, 0), (2, 2, 2), (9, 9, 9)])  # inside, across the border, outside
def test_half_precision_stays_half_and_whole_numbers_become_float32(start):
    for dtype, expected in ((np.float16, torch.float16), (np.int16, torch.float32), (np.float64, torch.float32)):
        box = read_box(np.ones((1, 4, 4, 4), dtype), start, (4, 4, 4))
        assert box.dtype == expected
        assert box.sum() == {0: 64, 2: 8, 9: 0}[start[0]]


def test_patches_lie_everywhere_alike(tmp_path):
    save(tmp_path / "d", "a", numbered())
    data = dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d")), (8, 24, 22))
    starts = np.array([corner_of_padded(data[i]) for i in range(1500)])
    assert set(starts[:, 0]) == set(range(SHAPE[0] - 8 + 1))
    counts = np.bincount(starts[:, 0])
    assert counts.min() > 0.5 * counts.mean()
    assert set(starts[:, 1]) == {0}


def corner_of_padded(patch: dict) -> tuple[int, int]:
    """Of a patch of (8, 24, 22): two voxels wider than the image along the last axis, so its first plane is outside."""
    assert not patch["image"][..., 0].any()
    first = np.unravel_index(int(patch["image"][0, 0, 0, 1]), SHAPE)
    return int(first[0]), int(first[1])


def test_only_what_is_needed_is_read(tmp_path, monkeypatch):
    """One channel of three, no labels where no loss asks for them, no properties where nothing is judged."""
    import blosc2

    save(tmp_path / "d", "a", numbered(3))
    (tmp_path / "d" / "a_seg.b2nd").unlink()
    (tmp_path / "d" / "a.pkl").unlink()
    sizes = []
    original = blosc2.NDArray.__getitem__
    monkeypatch.setattr(
        blosc2.NDArray, "__getitem__", lambda a, k: sizes.append(original(a, k).shape) or original(a, k)
    )
    data = dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d")))
    patches = [data[i] for i in range(30)]
    assert set(sizes) == {(1, 8, 8, 8)}
    assert len(sizes) == 30
    assert {int(p["image"][0, 0, 0, 0]) // 1_000_000 for p in patches} == {0, 1, 2}
    assert not any(p["excluded"].any() for p in patches)
    together = dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d")), separate_channels=False)[0]["image"]
    assert together.shape == (3, 8, 8, 8)


def test_flat_patches_are_slices(tmp_path):
    save(tmp_path / "d", "a", numbered())
    patches = [dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d")), (8, 8))[i] for i in range(40)]
    assert patches[0]["image"].shape == (1, 8, 8)
    assert patches[0]["excluded"].shape == (1, 8, 8)
    assert len({corner(p)[0] for p in patches}) > 10


def test_weights_say_how_often_an_image_is_drawn(tmp_path):
    for number, name in enumerate("abc"):
        save(tmp_path / "d", name, np.full((1, 8, 8, 8), number))
    data = dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d")), weights=[0.7, 0.0, 0.3])
    drawn = [int(data[i]["image"][0, 0, 0, 0]) for i in range(500)]
    assert np.bincount(drawn, minlength=3) / 500 == pytest.approx([0.7, 0, 0.3], abs=0.05)
    with pytest.raises(ValueError, match="2 weights for 3 images"):
        dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d")), weights=[0.5, 0.5])


def write_store(folder: Path, cases: dict[str, dict[int, list]], version: int = 1) -> None:
    """Places of labels as nnU-Net's development branch stores them beside the cases."""
    store, keys = folder / "fg_sampling", sorted({label for labels in cases.values() for label in labels})
    store.mkdir()
    rows = [
        [(keys.index(label), np.ravel_multi_index(np.array(v).T, SHAPE)) for label, v in c.items()]
        for c in cases.values()
    ]
    runs = [run for row in rows for run in row]
    totals = [sum(len(flat) for _, flat in row) for row in rows]
    np.save(store / "indptr.npy", np.cumsum([0, *map(len, rows)]))
    np.save(store / "class_id.npy", np.array([key for key, _ in runs], np.uint16))
    np.save(store / "count.npy", np.array([len(flat) for _, flat in runs], np.uint32))
    np.save(store / "base.npy", np.cumsum([0, *totals[:-1]]))
    np.save(store / "shape.npy", np.array([SHAPE] * len(cases)))
    flat = np.concatenate([flat for _, flat in runs]).astype(np.uint64)
    blosc2.asarray(flat, urlpath=str(store / "locations.b2nd"), chunks=(2,), blocks=(1,))
    meta = {"version": version, "identifiers": list(cases), "class_keys": keys}
    (store / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("noted_in", ["pkl", "store"])
def test_patches_around_the_anatomy(tmp_path, noted_in):
    """A third of the patches at least has the anatomy inside; anonymised voxels attract none, and none leaves the image."""
    corner_of_image = np.array([[0, 28, 22, 18]])
    if noted_in == "pkl":
        noted = {"class_locations": {1: corner_of_image, 2: np.array([[0, 1, 1, 1]])}}
        save(tmp_path / "d", "a", numbered(), **noted)
    else:
        save(tmp_path / "d", "a", numbered(), present_labels=[0, 1, 2])
        others = {"another": {2: [[5, 5, 5]] * 3}, "b": {1: [[9, 9, 9]] * 3, 2: [[3, 3, 3]]}}
        write_store(tmp_path / "d", {**others, "a": {1: [[28, 22, 18]], 2: [[1, 1, 1]]}})
    images = CorpusDataset("Dataset001_A", str(tmp_path / "d"), anatomy_label=1)
    starts = [corner(dataset(images)[i]) for i in range(400)]
    assert all(all(0 <= s <= full - 8 for s, full in zip(start, SHAPE, strict=True)) for start in starts)
    last = tuple(full - 8 for full in SHAPE)
    assert starts.count(last) / 400 == pytest.approx(AROUND_ANATOMY, abs=0.07)
    assert starts.count((0, 0, 0)) < 10


def test_the_store_of_places(tmp_path):
    save(tmp_path / "d", "a", numbered())
    write_store(tmp_path / "d", {"a": {2: [[1, 2, 3], [4, 5, 6]]}, "b": {1: [[7, 8, 9]]}})
    store = SamplingLocations(str(tmp_path / "d"))
    assert store.of("a", 2).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert store.of("b", 1).tolist() == [[7, 8, 9]]
    assert store.of("a", 1) is store.of("b", 3) is store.of("made later", 1) is None
    discard(str(tmp_path / "d"), ["a"])
    assert not SamplingLocations(str(tmp_path / "d")).is_there, "it would name places in an image that is no more"
    (tmp_path / "new").mkdir()
    write_store(tmp_path / "new", {"a": {1: [[1, 1, 1]]}}, version=2)
    with pytest.raises(CorpusError, match="is of version 2, and this nnunet_ssl reads version 1"):
        SamplingLocations(str(tmp_path / "new")).of("a", 1)


def airy_image(share: float) -> tuple[np.ndarray, np.ndarray]:
    """(image [1, 48, 48, 48], foreground): a cube of ones in a corner of nothing, `share` of the image in volume."""
    edge = round(48 * share ** (1 / 3))
    image = np.zeros((1, 48, 48, 48))
    image[:, :edge, :edge, :edge] = 1
    return image, image[0] > 0


def test_patches_of_an_image_that_is_mostly_air(tmp_path):
    image, foreground = airy_image(0.1)
    places = np.argwhere(foreground)
    chosen = places[np.random.default_rng(0).choice(len(places), 1000, replace=False)]
    noted = {LOCATIONS: np.insert(chosen, 0, 0, axis=1).astype(np.int32), SHARE: float(foreground.mean())}
    save(tmp_path / "noted", "a", image, **noted)
    save(tmp_path / "silent", "a", image)
    assert foreground.mean() == pytest.approx(0.1, abs=0.01)
    shares = {}
    for name, limit in (("noted", 0.3), ("noted", 0.0), ("silent", 0.3)):
        data = dataset(CorpusDataset("Dataset001_A", str(tmp_path / name)), (12, 12, 12), min_foreground=limit)
        shares[name, limit] = np.array([data[i]["image"].mean().item() for i in range(200)])
        again = data[7]["image"]
        assert torch.equal(again, data[7]["image"])
    assert (shares["noted", 0.0] < 0.3).mean() > 0.6
    assert (shares["silent", 0.3] < 0.3).mean() > 0.6
    # The share is estimated, and after ten tries a patch around some foreground voxel is taken.
    assert (shares["noted", 0.3] < 0.2).mean() < 0.05
    assert shares["noted", 0.3].min() > 0
    assert shares["noted", 0.3].mean() > 2 * shares["noted", 0.0].mean()


def test_an_image_no_larger_than_the_patch_is_taken_as_it_is(tmp_path):
    save(tmp_path / "d", "a", np.ones((1, 6, 6, 6)))
    patch = dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d")), min_foreground=0.9)[0]["image"]
    assert patch.sum() == 6**3
    assert around(np.array([[9, 9, 9]]), (10, 10, 10), (4, 4, 4)) == [6, 6, 6]


def test_storage_is_found_from_the_names(tmp_path):
    for name in ("b.b2nd", "b_seg.b2nd", "b.pkl", "a.b2nd", "a_seg.b2nd", "a.pkl", "splits.json"):
        (tmp_path / name).touch()
    (tmp_path / "preprocessing").mkdir()
    assert storage_and_cases(str(tmp_path)) == ("b2nd", ["a", "b"])
    (tmp_path / "old.npz").touch()
    with pytest.raises(RuntimeError, match=r"\.b2nd and \.npz"):
        storage_and_cases(str(tmp_path))


def test_numpy_storage_of_older_nnunets_is_read(tmp_path):
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "a.npz", data=numbered().astype(np.float32), seg=np.full((1, *SHAPE), 2))
    np.save(tmp_path / "d" / "a.npy", numbered().astype(np.float32))
    np.save(tmp_path / "d" / "a_seg.npy", np.full((1, *SHAPE), 2))
    (tmp_path / "d" / "a.pkl").write_bytes(b"\x80\x04}\x94.")
    patch = dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d"), anonymised_label=2))[0]
    assert patch["excluded"].all()
    assert corner(patch) != (0, 0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_with_its_own_traceback(tmp_path, workers):
    save(tmp_path / "d", "broken", numbered())
    data = dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d")))
    (tmp_path / "d" / "broken.b2nd").unlink()
    upcoming = load_batches(data, Positions(range(2), 1, 1, 0, repeat=False), workers, torch.device("cpu"))
    with pytest.raises(FileNotFoundError) as caught:
        next(upcoming)
    shown = str(caught.value) + "".join(str(entry) for entry in caught.traceback)
    assert "broken.b2nd" in shown
    assert "patches.py" in shown


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_in_one_piece_and_in_uneven_parts(tmp_path, workers, monkeypatch):
    save(tmp_path / "d", "a", numbered())
    save(tmp_path / "d", "b", numbered() + 0.5)
    data = dataset(CorpusDataset("Dataset001_A", str(tmp_path / "d"), anonymised_label=2))
    positions = Positions(range(3), 10, 5, 5, repeat=False)  # the second of two processes

    def load(part: int) -> list:
        monkeypatch.setattr(batches, "CHUNK_BYTES", part * data.bytes_per_sample())
        assert Chunks.of(5, data.bytes_per_sample()).size == part
        return list(load_batches(data, positions, workers, torch.device("cpu")))

    whole = load(5)
    assert len(whole) == 3
    for expected, found in zip(whole, load(2), strict=True):  # 2, 2 and 1
        assert found["key"] == expected["key"]
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["excluded"], expected["excluded"])
        assert found["excluded"].dtype is torch.bool
    assert torch.equal(whole[1]["image"][3], data[10 + 5 + 3]["image"])


def test_large_batches_are_shared_by_the_workers_and_few_are_on_their_way():
    large, small = 160**3 * 5, 64**3 * 5
    assert Chunks.of(8, large).size == 1
    assert Chunks.of(8, 4 * large).size == 1  # larger than a part may be
    assert Chunks.of(8, small).size == 8
    assert Chunks.of(8, 96**3 * 5).size == 4  # not 7 and 1
    assert Chunks.of(8, large).prefetched(8, 4) * 8 == 4 * 8  # samples: four batches
    assert Chunks.of(8, small).prefetched(8, 4) == 2  # batches of each worker
    assert list(Chunks(5, 2).split([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]))[2:4] == [[4], [5, 6]]


def test_samples_of_different_shapes_are_no_batch():
    parts = [{"image": torch.zeros(1, 2, 4), "key": ["a"]}, {"image": torch.zeros(1, 1, 4), "key": ["b"]}]
    with pytest.raises(ValueError, match=r"\(1, 4\) \(b\) and \(2, 4\) \(a\)"):
        list(Chunks(2, 1).join(parts, torch.device("cpu")))
