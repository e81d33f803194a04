"""Frozen features: windows, pooling, places in the patient, and encoders of checkpoints of every origin."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch.nn import functional

from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.description.conventions import Conventions
from nnunet_ssl.checkpoints.hub.resolve import Origin
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.errors import CheckpointError, FolderTaken, SettingsError, UnusableImage
from nnunet_ssl.features.encoder import encoder_of, load_encoder
from nnunet_ssl.features.extraction import Output, Wanted, extract, settings_of
from nnunet_ssl.features.placed_map import PlacedMap
from nnunet_ssl.features.placement import Placement
from nnunet_ssl.features.preparation import Preparation
from nnunet_ssl.features.scans import Scan, scans_in
from nnunet_ssl.features.windows import blended_map, padded_size, starts
from nnunet_ssl.report.embedding_page import project, write_embedding_page

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"nnssl checkpoints are not in {FIXTURES}")
HERE = Origin("checkpoint.pth", "0" * 64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class TestWindows:
    @pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
    def test_every_voxel_is_in_a_window_and_windows_lie_on_the_grid(self, overlap: float) -> None:
        for size, (patch, stride) in product(range(16, 130, 8), [(16, 8), (32, 8), (24, 4), (40, 8)]):
            if size < patch or size % stride:
                continue
            found = starts(size, patch, stride, overlap)
            covered = np.zeros(size, bool)
            for first in found:
                covered[first : first + patch] = True
            assert covered.all()
            assert found == sorted(set(found))
            assert found[0] == 0
            assert found[-1] == size - patch
            assert not [first for first in found if first % stride]

    @pytest.mark.parametrize("size", [(16, 16, 16), (23, 40, 17), (5, 9, 33)])
    def test_a_local_encoder_gives_the_same_in_windows_as_at_once(
        self, size: tuple[int, ...], rng: np.random.Generator
    ) -> None:
        """Means of blocks do not depend on where windows lie: blending and padding must not change them."""
        image = torch.from_numpy(rng.normal(size=(2, *size)).astype(np.float32))

        def encode(x: torch.Tensor) -> list[torch.Tensor]:
            return [functional.avg_pool3d(x, 2), functional.avg_pool3d(x, 4)]

        maps, before = blended_map(encode, image, (16, 16, 16), (4, 4, 4), [0, 1], [(2,) * 3, (4,) * 3], batch_size=3)
        whole = padded_size(size, (16, 16, 16), (4, 4, 4))
        padded = np.zeros((2, *whole), np.float32)
        padded[(slice(None), *(slice(b, b + n) for b, n in zip(before, size, strict=True)))] = image
        for found, wanted in zip(maps, encode(torch.from_numpy(padded)[None]), strict=True):
            torch.testing.assert_close(found, wanted[0], atol=1e-5, rtol=1e-5)


def placed(rng: np.random.Generator, size: tuple[int, ...] = (13, 16, 9), stride: int = 4) -> PlacedMap:
    """A map of random features of an image that does not fill its grid."""
    grid = padded_size(size, size, (stride,) * 3)
    before = tuple((n - m) // 2 for n, m in zip(grid, size, strict=True))
    features = rng.normal(size=(5, *(n // stride for n in grid))).astype(np.float32)
    placement = Placement(size, size, (0, 0, 0), (0, 1, 2), np.eye(4))
    return PlacedMap(features, (stride,) * 3, before, placement)


def voxel_by_voxel(found: PlacedMap, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twin of the pooling: every voxel of the mask votes for the position it lies in."""
    votes = np.zeros(found.features.shape[1:])
    for voxel in np.argwhere(mask):
        votes[tuple((v + b) // s for v, b, s in zip(voxel, found.before, found.stride, strict=True))] += 1
    mean = np.zeros(len(found.features))
    for position in np.argwhere(votes):
        mean += votes[tuple(position)] * found.features[(slice(None), *position)]
    half = np.prod(found.stride) / 2
    chosen = votes >= (half if (votes >= half).any() else votes.max())
    return mean / votes.sum(), found.features[:, chosen].max(axis=1)


class TestPooling:
    def test_of_the_image_counts_no_padding(self, rng: np.random.Generator) -> None:
        found = placed(rng)
        pooled = found.pooled(("mean", "max"))
        mean, largest = voxel_by_voxel(found, np.ones(found.placement.shape, bool))
        np.testing.assert_allclose(pooled["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pooled["max"], largest)
        assert found.coverage.sum() * 64 == pytest.approx(np.prod(found.placement.shape))

    def test_of_regions_against_a_slow_twin(self, rng: np.random.Generator) -> None:
        found = placed(rng)
        labels = rng.integers(0, 4, found.placement.shape)
        labels[:6, :6, :6] = 2
        labels[12, 15, 8] = 7  # a single voxel
        pooled = found.pooled_in(labels, ("mean", "max"))
        assert sorted(pooled) == [1, 2, 3, 7]
        for region, values in pooled.items():
            mean, largest = voxel_by_voxel(found, labels == region)
            np.testing.assert_allclose(values["mean"], mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(values["max"], largest)

    def test_refuses_what_it_does_not_know(self, rng: np.random.Generator) -> None:
        with pytest.raises(SettingsError, match="median"):
            placed(rng).pooled(("median",))
        with pytest.raises(ValueError, match="shape of the image"):
            placed(rng).pooled_in(np.zeros((3, 3, 3), int))


def oblique(array: np.ndarray) -> sitk.Image:
    """An image that lies askew in the scanner, with three different spacings."""
    image = sitk.GetImageFromArray(array.astype(np.float32))
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5)
    image.SetDirection(turn.GetMatrix())
    image.SetSpacing((0.7, 1.1, 2.0))
    image.SetOrigin((-31.0, 12.0, 45.0))
    return image


def preparation(spacing: tuple[float, ...] | None, transpose: tuple[int, ...] = (0, 1, 2)) -> Preparation:
    return Preparation(spacing, ("NoNormalization",), (False,), {"0": {}}, transpose, 3)


class TestPlace:
    @pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
    @pytest.mark.parametrize("spacing", [None, (1.0, 1.4, 0.9)])
    def test_positions_of_an_oblique_image(
        self, spacing: tuple[float, ...] | None, transpose: tuple[int, ...], tmp_path: Path
    ) -> None:
        """Images of the patient's own coordinates, cropped, turned, resampled, averaged in blocks: the affine says the same."""
        shape, margin = (18, 30, 34), 3
        template = oblique(np.zeros(shape))
        inside = np.zeros(shape, bool)
        inside[margin:-margin, margin + 2 : -margin, margin:-1] = True
        places = np.zeros((3, *shape))
        for index in np.ndindex(*shape):
            point = template.TransformIndexToPhysicalPoint(tuple(int(i) for i in index[::-1]))
            places[(slice(None), *index)] = (
                np.array([-point[0], -point[1], point[2]]) + 1000.0
            )  # RAS; 0 would be cropped
        maps = []
        for number, coordinate in enumerate(places):
            image = oblique(np.where(inside, coordinate, 0))
            sitk.WriteImage(image, str(tmp_path / f"{number}.nii.gz"))
            prepared = preparation(spacing, transpose).read(tmp_path / f"{number}.nii.gz")
            (features,), before = blended_map(
                lambda x: [functional.avg_pool3d(x, 4)],
                torch.from_numpy(prepared.image),
                (8, 8, 8),
                (4, 4, 4),
                [0],
                [(4,) * 3],
            )
            maps.append(PlacedMap(features.numpy(), (4, 4, 4), before, prepared.placement))
        whole = maps[0].coverage > 0.999
        core = np.zeros_like(whole)
        core[1:-1, 1:-1, 1:-1] = whole[1:-1, 1:-1, 1:-1]  # the spline bends at the borders
        assert core.sum() >= 8
        in_file = [found.in_file_order()[..., 0] for found in maps]
        chosen = (
            PlacedMap(core[None].astype(np.float32), (4, 4, 4), maps[0].before, maps[0].placement).in_file_order()[
                ..., 0
            ]
            > 0
        )
        indices = np.argwhere(chosen)
        stated = nibabel.affines.apply_affine(maps[0].affine, indices)
        measured = np.stack([values[chosen] for values in in_file], axis=1) - 1000.0
        np.testing.assert_allclose(stated, measured, atol=0.02)

    def test_a_written_map_says_where_it_lies(self, rng: np.random.Generator, tmp_path: Path) -> None:
        found = placed(rng)
        found.write(tmp_path / "map.nii.gz")
        image = nibabel.load(tmp_path / "map.nii.gz")
        np.testing.assert_allclose(image.affine, found.affine)
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), found.in_file_order())
        found.write(tmp_path / "map.npz")
        np.testing.assert_array_equal(np.load(tmp_path / "map.npz")["features"], found.features)
        with pytest.raises(SettingsError, match=r"\.nii\.gz or \.npz"):
            found.write(tmp_path / "map.tif")

    def test_labels_follow_their_image(self, rng: np.random.Generator, tmp_path: Path) -> None:
        image = rng.normal(size=(12, 20, 24)) + 100
        labels = np.zeros(image.shape, np.uint8)
        labels[4:8, 5:15, 6:18] = 3
        for name, array in (("image", image), ("label", labels)):
            sitk.WriteImage(oblique(array), str(tmp_path / f"{name}.nii.gz"))
        prepared = preparation((1.0, 1.0, 1.0)).read(tmp_path / "image.nii.gz", str(tmp_path / "label.nii.gz"))
        assert prepared.labels is not None
        assert prepared.labels.shape == prepared.image.shape[1:]
        assert set(np.unique(prepared.labels)) == {0, 3}
        assert (prepared.labels == 3).sum() == pytest.approx((labels == 3).sum() * 0.7 * 1.1 * 2.0, rel=0.1)
        sitk.WriteImage(sitk.GetImageFromArray(labels[1:]), str(tmp_path / "other.nii.gz"))
        with pytest.raises(UnusableImage, match="differ in shape"):
            preparation(None).read(tmp_path / "image.nii.gz", str(tmp_path / "other.nii.gz"))


class TestPreparation:
    def test_says_what_it_assumes_and_refuses_what_nobody_knows(self) -> None:
        assumed = Preparation.like_pretraining({}, Conventions(), 3, 2)
        assert assumed.spacing == (1.0, 1.0, 1.0)
        assert assumed.normalization == ("ZScoreNormalization",) * 2
        assert len(assumed.notes) == 2
        own = Preparation.like_pretraining({}, Conventions(resampled=False), 3, 1, normalization="SSLMRNormalization")
        assert (own.spacing, own.notes, own.normalization) == (None, (), ("SSLMRNormalization",))
        with pytest.raises(CheckpointError, match="--normalization"):
            Preparation.like_pretraining({}, Conventions(normalization=("CTNormalization",)), 3, 1)
        several = Conventions(normalization=("ZScoreNormalization", "SSLCTNormalization"))
        with pytest.raises(CheckpointError, match="each in its own way"):
            Preparation.like_pretraining({}, several, 3, 3)
        with pytest.raises(SettingsError, match="three numbers"):
            Preparation.like_pretraining({}, Conventions(), 3, 1, spacing=(1.0, 0.0, 1.0))


@needs_fixtures
class TestEncoders:
    @pytest.mark.filterwarnings("ignore:.*which is a no-op")
    @pytest.mark.parametrize("folder", sorted(p.name for p in FIXTURES.glob("*") if list(p.glob("full_size*.json"))))
    def test_every_full_size_checkpoint_becomes_an_encoder(self, folder: str) -> None:
        """On torch's meta device: names, shapes and conventions, no memory."""
        record = json.loads(next(iter((FIXTURES / folder).glob("full_size*.json"))).read_text())
        shapes = record.get("saved_network_weights_shapes") or record["shapes"]
        value = torch.full((1,), 0.5)
        checkpoint = {
            "network_weights": {name: value.expand(shape) for name, shape in shapes.items()},
            "trainer_name": record["trainer"],
            "nnssl_adaptation_plan": record["adaptation_plan"] or {},
        }
        with torch.device("meta"):
            encoder = encoder_of(checkpoint, HERE)
        primus = any(".attn." in name for name in shapes)
        widest = (512, 512) if folder.startswith("NonResEncL") else (320, 320)
        assert encoder.feature_channels == ((864,) if primus else (32, 64, 128, 256, *widest))
        assert encoder.feature_strides[-1] == ((8, 8, 8) if primus else (32, 32, 32))
        assert encoder.preparation.spacing == (1.0, 1.0, 1.0)
        assert encoder.report.encoder_fraction == 1.0

    @staticmethod
    def opened(trainer: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, object], torch.Tensor]:
        """(encoder, all weights, what nnssl recorded, the image it was computed from)."""
        record = torch.load(FIXTURES / trainer / "io_tiny.pt", weights_only=True)
        image = torch.randn(record["input_shape"], generator=torch.Generator().manual_seed(1234))
        checkpoint = read_checkpoint(FIXTURES / trainer / "checkpoint_tiny.pth")
        encoder = encoder_of(checkpoint, HERE, patch_size=image.shape[2:])
        return encoder, canonical_weights(checkpoint)[0], record, image

    @torch.no_grad()
    def test_a_u_net_gives_what_nnssl_computed(self) -> None:
        """VoCo's output is a projector on the means of all feature maps."""
        encoder, weights, record, image = self.opened("VoCoTrainer")
        found = torch.cat([stage.mean(dim=(2, 3, 4)) for stage in encoder(image)], dim=1)
        for layer in ("layer1.0", "layer2.0"):
            found = functional.linear(found, weights[f"projector.{layer}.weight"], weights[f"projector.{layer}.bias"])
            found = functional.relu(functional.layer_norm(found, found.shape[1:]))
        found = functional.linear(found, weights["projector.layer3.0.weight"], weights["projector.layer3.0.bias"])
        torch.testing.assert_close(found, record["out"], atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_a_transformer_gives_what_nnssl_computed(self) -> None:
        """SwinUNETR's rotation and contrast heads sit on the first two tokens."""
        encoder, weights, record, image = self.opened("SwinUNETREvaTrainer")
        tokens = encoder(image)[0].flatten(2).transpose(1, 2)
        for number, name in enumerate(("rotation", "contrast")):
            head = weights[f"{name}_proj_head.weight"], weights[f"{name}_proj_head.bias"]
            torch.testing.assert_close(
                functional.linear(tokens[:, number], *head), record["out"][number], atol=1e-4, rtol=1e-4
            )

    def test_embeds_files_arrays_and_channels(self, tmp_path: Path, rng: np.random.Generator) -> None:
        encoder = load_encoder(FIXTURES / "VoCoTrainer" / "checkpoint_tiny.pth", patch_size=(32, 32, 32))
        array = rng.normal(size=(20, 30, 40)).astype(np.float32) + 10
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 1.5, 2.0))
        sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
        features = encoder.embed(tmp_path / "scan.nii.gz")
        assert features.shape == (32,)
        torch.testing.assert_close(features, encoder.embed(array, spacing=(2.0, 1.5, 1.0)))
        every = encoder.embed(str(tmp_path / "scan.nii.gz"), layer="all", pool=("mean", "max"))
        assert every.shape == (2 * sum(encoder.feature_channels),)
        torch.testing.assert_close(every[-64:-32], features)
        encoder.train()
        torch.testing.assert_close(encoder.embed(tmp_path / "scan.nii.gz"), features)
        assert encoder.training
        with pytest.raises(SettingsError, match="spacing"):
            encoder.embed(array)
        with pytest.raises(SettingsError, match="layer is 0"):
            encoder.embed(tmp_path / "scan.nii.gz", layer=6)
        with pytest.raises(UnusableImage):
            encoder.embed(tmp_path / "none.nii.gz")


@needs_fixtures
class TestExtraction:
    @pytest.fixture
    def encoder(self) -> object:
        return load_encoder(FIXTURES / "VoCoTrainer" / "checkpoint_tiny.pth", patch_size=(32, 32, 32))

    @pytest.fixture
    def images(self, tmp_path: Path, rng: np.random.Generator) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for number in range(4):
            image = sitk.GetImageFromArray(rng.normal(size=(20, 24, 18)).astype(np.float32) + 10)
            sitk.WriteImage(image, str(folder / f"case_{number}_0000.nii.gz"))
        return folder

    def test_continues_and_leaves_out_what_cannot_be_used(self, encoder, images: Path, tmp_path: Path) -> None:
        scans, _ = scans_in([str(images)])
        assert [scan.case for scan in scans] == [f"case_{n}" for n in range(4)]
        (images / "case_3_0000.nii.gz").write_bytes(b"no image")
        wanted = Wanted(pool=("mean", "max"))
        target = tmp_path / "out" / "features.csv"
        assert extract(encoder, scans[:2], wanted, Output(target, wanted, settings_of(encoder, wanted))) == 2
        again = Output(target, wanted, settings_of(encoder, wanted))
        assert again.known == {"case_0", "case_1"}
        assert extract(encoder, scans, wanted, again) == 3
        table = pd.read_csv(target)
        assert list(table["case"]) == ["case_0", "case_1", "case_2"]
        assert table.shape[1] == 2 + 2 * 32
        assert list(json.loads((tmp_path / "out" / "features.csv.json").read_text())["left_out"]) == ["case_3"]
        expected = encoder.embed(scans[0].files)
        np.testing.assert_allclose(table.loc[0, "mean_0":"mean_31"].to_numpy(float), expected, rtol=1e-5)
        other = Wanted(layer="all")
        with pytest.raises(FolderTaken, match="layer"):
            Output(target, other, settings_of(encoder, other))

    def test_changed_images_are_done_anew(self, encoder, images: Path, tmp_path: Path, capsys) -> None:
        """In a table, and in a folder of files; what did not change stays as it is."""
        scans, _ = scans_in([str(images)])
        changing = images / "case_1_0000.nii.gz"
        for number, place in enumerate((tmp_path / "table.parquet", tmp_path / "folder")):
            wanted = Wanted(layer="all", pool=("mean", "max"))
            assert extract(encoder, scans, wanted, Output(place, wanted, {})) == 4
            before = Output(place, wanted, {}).features()
            other = np.random.default_rng(number + 9).normal(size=(20, 24, 18)).astype(np.float32) + 5
            sitk.WriteImage(sitk.GetImageFromArray(other), str(changing))
            again = Output(place, wanted, {})
            assert extract(encoder, scans, wanted, again) == 4
            assert "1 image changed since, and made anew: case_1" in capsys.readouterr().out
            after = again.features()
            assert {case for case in after if (after[case] != before[case]).any()} == {"case_1"}
            embedded = encoder.embed(scans[1].files, layer="all", pool=("mean", "max"))
            np.testing.assert_allclose(after["case_1"], embedded, rtol=1e-5, atol=1e-6)
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((20, 24, 18), np.float32)), str(changing))
        for place in (
            tmp_path / "table.parquet",
            tmp_path / "folder",
        ):  # what cannot be used any more leaves nothing behind
            assert extract(encoder, scans, wanted, Output(place, wanted, {})) == 3
            assert "case_1" not in Output(place, wanted, {}).features()

    def test_a_network_of_slices_goes_through_a_volume_slice_by_slice(
        self, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        network = PlainConvUNet(1, 3, (4, 8, 8), torch.nn.Conv2d, 3, (1, 2, 2), (1, 1, 1), 2, (1, 1)).eval()
        torch.save({"network_weights": network.state_dict()}, tmp_path / "flat.pth")
        encoder = load_encoder(tmp_path / "flat.pth", patch_size=(16, 24), normalization="NoNormalization")
        volume = rng.normal(size=(5, 16, 24)).astype(np.float32) + 10
        found = encoder.map_of(volume, spacing=(3.0, 1.0, 1.0))
        assert found.features.shape == (8, 5, 4, 6)
        with torch.no_grad():
            wanted = encoder(torch.from_numpy(volume[:, None]))[-1].transpose(0, 1)
        np.testing.assert_allclose(found.features, wanted.numpy(), rtol=1e-4, atol=1e-5)
        assert nibabel.affines.voxel_sizes(found.affine) == pytest.approx([4.0, 4.0, 3.0])

    def test_never_replaces_what_is_not_its_own(self, encoder, tmp_path: Path) -> None:
        wanted = Wanted()
        (tmp_path / "mine.parquet").write_text("precious")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").touch()
        for name in ("mine.parquet", "folder"):
            with pytest.raises(FolderTaken, match="not ours"):
                Output(tmp_path / name, wanted, {})
        for name, level in (("table.xlsx", "image"), ("maps.csv", "patch"), ("folder2", "region")):
            with pytest.raises(SettingsError):
                Output(tmp_path / name, Wanted(level), {})

    def test_a_folder_of_files_is_continued(self, encoder, images: Path, tmp_path: Path) -> None:
        scans, _ = scans_in([str(images)])
        wanted = Wanted("patch", maps="npz")
        for some in (scans[:1], scans):
            assert extract(encoder, some, wanted, Output(tmp_path / "maps", wanted, {})) == len(some)
        assert len(list((tmp_path / "maps").glob("*.npz"))) == 4

    def test_regions_of_images_without_labels_are_left_out(self, encoder, images: Path, tmp_path: Path) -> None:
        label = sitk.GetImageFromArray(np.pad(np.full((6, 6, 6), 2, np.uint8), ((4, 10), (8, 10), (6, 6))))
        sitk.WriteImage(label, str(tmp_path / "case_0.nii.gz"))
        first, second, *_ = scans_in([str(images)])[0]
        labelled = Scan(first.case, first.files, str(tmp_path / "case_0.nii.gz"))
        wanted = Wanted("region")
        output = Output(tmp_path / "regions.parquet", wanted, {})
        assert extract(encoder, [labelled, second], wanted, output) == 1
        assert [(row["region"], row["voxels"]) for row in output.rows] == [(2, 216)]
        assert output.left_out == {"case_1": "it has no segmentation"}


def test_the_projection_is_that_of_scikit_learn(rng: np.random.Generator, tmp_path: Path) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    features = rng.normal(size=(30, 6)) @ rng.normal(size=(6, 6))
    places, shares = project(np.column_stack([features, np.full(30, 3.0)]))
    twin = decomposition.PCA(2).fit(features / features.std(axis=0))
    np.testing.assert_allclose(np.abs(places), np.abs(twin.transform(features / features.std(axis=0))), atol=1e-8)
    np.testing.assert_allclose(shares, twin.explained_variance_ratio_)
    table = pd.DataFrame(features, columns=[f"mean_{n}" for n in range(6)])
    for colour in (None, pd.Series(range(30), name="age"), pd.Series(list("abcdefghij") * 3, name="scanner")):
        write_embedding_page(tmp_path / "page.html", table, list(table), colour, "Features")
        assert "effective rank" in (tmp_path / "page.html").read_text()
