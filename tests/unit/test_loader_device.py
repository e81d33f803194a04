"""Patches that are finished on the device are those that reading processes finish, from the first draw to the last voxel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scipy.ndimage import gaussian_filter

from nnunet_ssl.trainers.data import batches, packing
from nnunet_ssl.trainers.data.augmentation import Augmentation
from nnunet_ssl.trainers.data.batches import Positions, load_batches
from nnunet_ssl.trainers.data.corpus import Corpus, CorpusDataset
from nnunet_ssl.trainers.data.finishing import Box
from nnunet_ssl.trainers.data.packing import Packer, tensors_of, unpack
from nnunet_ssl.trainers.data.patch_sampler import PatchSampler
from nnunet_ssl.trainers.data.patches import PatchDataset
from nnunet_ssl.trainers.data.recycling import FREE, SharedMemory, give_back
from nnunet_ssl.views.spec import Views

CPU = torch.device("cpu")
THIRTY = (-np.pi / 6, np.pi / 6)
# Region, in plane, largest box.
GEOMETRIES = {
    "volumes": ((12, 14, 10), False, (22, 24, 20)),
    "thin": ((4, 14, 12), True, (4, 24, 22)),
    "slices": ((14, 12), False, (24, 22)),
}


def write(folder: Path, dtype: type, channels: int, anonymised: bool, seed: int) -> CorpusDataset:
    """Three smooth volumes; in two of them a corner is anonymised, if any."""
    folder.mkdir()
    for number in range(3):
        rng = np.random.default_rng([seed, number])
        image = np.stack([gaussian_filter(rng.normal(size=(26, 30, 28)), 1) for _ in range(channels)])
        labels = np.zeros((1, 26, 30, 28), np.int16)
        labels[:, :13, :20, :20] = 2 * (number < 2)
        parts = ((1, 26, 30, 28), (1, 26, 30, 28))
        nnUNetDatasetBlosc2.save_case(image.astype(dtype), labels, {}, str(folder / f"case_{number}"), *parts)
    return CorpusDataset(folder.name, str(folder), anonymised_label=2 if anonymised else None)


@pytest.fixture
def dataset(tmp_path):
    """Function (geometry, dtypes and whether there are anonymised voxels of each dataset, channels, regions) -> patches."""

    def make(geometry: str, kinds: list[tuple[type, bool]], channels: int = 1, regions: int = 1) -> PatchDataset:
        size, in_plane, largest = GEOMETRIES[geometry]
        datasets = [
            write(tmp_path / f"Dataset{n:03d}_A", dtype, channels, anonymised, n)
            for n, (dtype, anonymised) in enumerate(kinds)
        ]
        corpus = Corpus(datasets, Corpus.all_identifiers(datasets))
        axes = tuple(range(len(size)))
        augmentation = Augmentation(size, 0.4, THIRTY, in_plane=in_plane, largest=largest, mirror_axes=axes)
        views = replace(Views(size, size), regions=regions)
        return PatchDataset(
            corpus, views, augmentation, PatchSampler(corpus), seed=1, stream=0, separate_channels=channels == 1,
            finish_later=True,
        )  # fmt: skip

    return make


def in_worker(data: PatchDataset) -> PatchDataset:
    """The same patches, finished where they are read."""
    settings = {"seed": data.seed, "stream": data.stream, "separate_channels": data.separate_channels}
    return PatchDataset(data.corpus, data.views, data.augmentation, data.sampler, **settings)


def load(data: PatchDataset, workers: int = 0, total: int = 8, local: int = 8, offset: int = 0) -> list[dict]:
    return list(load_batches(data, Positions(range(4), total, local, offset, repeat=False), workers, CPU))


CASES = {
    "volumes": ("volumes", [(np.float32, True)], 1, 1),
    "half": ("volumes", [(np.float16, True)], 1, 1),
    "no masks": ("volumes", [(np.float16, False)], 1, 1),
    "mixed": ("volumes", [(np.float32, False), (np.float16, True)], 1, 1),
    "channels": ("volumes", [(np.float32, True)], 3, 1),
    "regions": ("volumes", [(np.float32, True), (np.float16, False)], 2, 2),
    "thin": ("thin", [(np.float32, True)], 2, 1),
    "slices": ("slices", [(np.float16, True)], 1, 2),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", sorted(CASES))
def test_finished_on_the_device_as_in_a_reading_process(case, workers, dataset, monkeypatch):
    data = dataset(*CASES[case])
    expected, excluded = load(in_worker(data)), 0
    for part in (8, 3):  # in one piece, and 3, 3 and 2
        monkeypatch.setattr(batches, "CHUNK_BYTES", part * data.bytes_per_sample())
        for batch, other in zip(load(data, workers), expected, strict=True):
            found = unpack(batch, data.views)
            assert batch["key"] == other["key"]
            assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
                k: (v.shape, v.dtype) for k, v in other.items() if k != "key"
            }
            torch.testing.assert_close(found["image"], other["image"], atol=2e-5, rtol=0)
            assert torch.equal(found["excluded"], other["excluded"])
            excluded += int(found["excluded"].any())
    assert excluded  # where there are no masks, what turning brought in from beyond the image
    turned = [b.affine for batch in load(data) for p in batch["packed"] for b in p.boxes()]
    assert len({(t is not None and any(t.angles), t is not None and t.scale != 1) for t in turned}) == 4


def test_processes_share_a_batch_as_one_process_makes_it(dataset):
    data = dataset(*CASES["mixed"])
    whole = [unpack(b, data.views) for b in load(data)]
    halves = [[unpack(b, data.views) for b in load(data, 0, 8, 4, offset)] for offset in (0, 4)]
    for batch, first, second in zip(whole, *halves, strict=True):
        for name in ("image", "excluded"):
            assert torch.equal(batch[name], torch.cat([first[name], second[name]]))


def test_only_what_is_needed_is_sent(dataset):
    """Half precision as it is stored, masks of boxes in which something is excluded, nothing twice."""
    half = [packed for batch in load(dataset("volumes", [(np.float16, True)])) for packed in batch["packed"]]
    boxes = [box for packed in half for box in packed.boxes()]
    assert {b.image.dtype for b in boxes} == {torch.float16}
    masks = sum(b.excluded.numel() for b in boxes if b.excluded is not None)
    assert sum(p.memory.nbytes for p in half) == 2 * sum(b.image.numel() for b in boxes) + masks
    with_masks = [b.excluded is not None for b in boxes]
    assert 0 < sum(with_masks) < len(with_masks)
    assert all(b.excluded.any() for b in boxes if b.excluded is not None)


@pytest.mark.parametrize("geometry", sorted(GEOMETRIES))
def test_no_sample_is_larger_than_was_announced(geometry, dataset):
    data = dataset(geometry, [(np.float32, True)])
    most = data.bytes_per_sample()
    sizes = [sum(t.nbytes for t in tensors_of(b)) for b in load(data, total=1, local=1)]
    assert 0 < max(sizes) <= most
    data.augmentation.p = 1.0
    sizes = []
    for position in range(300):
        (box,) = data[position]["boxes"]
        sizes.append(box.image.nbytes + box.image[0].numel())
    assert max(sizes) <= most
    assert max(sizes) > 0.8 * most  # and not much less either
    data.augmentation.p = 0.0
    assert data.bytes_per_sample() == 5 * np.prod(GEOMETRIES[geometry][0])
    data.finish_later = False
    assert data.bytes_per_sample() == 5 * np.prod(GEOMETRIES[geometry][0])


def test_memory_is_used_again_when_it_was_given_back():
    memory = SharedMemory(2)
    first, second = memory.take(100), memory.take(50)
    assert (len(first), len(second)) == (101, 51)
    assert first.is_shared()
    once = memory.take(40)  # both are away
    assert once.data_ptr() not in (first.data_ptr(), second.data_ptr())
    give_back(once)
    give_back(first)
    assert memory.take(40).data_ptr() == first.data_ptr()  # the one that is used once is not kept
    give_back(first)
    give_back(second)
    assert memory.take(50).data_ptr() == second.data_ptr()  # the smallest that is large enough
    give_back(second)
    large = memory.take(200)  # in place of the smallest
    give_back(large)
    assert [memory.take(n).data_ptr() for n in (150, 90)] == [large.data_ptr(), first.data_ptr()]


@pytest.mark.parametrize("move", ["to", "pin_memory"])
def test_memory_of_a_reading_process_is_given_back_as_soon_as_it_was_copied(move, monkeypatch):
    monkeypatch.setattr(packing, "get_worker_info", lambda: "of a reading process")
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # which wants a GPU
    packer, image, mask = Packer(), torch.randn(2, 3, 4, 5), torch.rand(1, 3, 4, 5) > 0.5
    sample = {"boxes": [Box(image, None, None, ()), Box(image + 1, mask, None, ())], "key": "a"}
    packed = packer([sample])["packed"]
    assert packed.memory[-1] != FREE
    moved = packed.to(CPU) if move == "to" else packed.pin_memory()
    again = packer([{"boxes": [Box(image * 0, ~mask, None, ())], "key": "b"}])["packed"]
    assert again.memory.data_ptr() == packed.memory.data_ptr()
    first, second = moved.to(CPU).boxes()
    assert torch.equal(first.image, image)
    assert torch.equal(second.image, image + 1)
    assert torch.equal(second.excluded, mask)
    assert moved.memory.nbytes == moved.bytes == 2 * 480 + 60


def test_samples_with_other_channels_are_no_batch(dataset, tmp_path):
    data = dataset("volumes", [(np.float32, False)], 2)
    other = write(tmp_path / "Dataset009_B", np.float32, 3, False, 9)
    datasets = [*data.corpus.datasets.values(), other]
    data.corpus = Corpus(datasets, Corpus.all_identifiers(datasets))
    with pytest.raises(ValueError, match=r"differ in channels: [23] \(Dataset00\d.*\) and [23] \(Data"):
        load(data)
