from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import matplotlib
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_ssl.report.geometry import UNKNOWN, Geometry, Marks
from nnunet_ssl.report.overlays import draw_overlay
from nnunet_ssl.report.painting import BOX_COLOUR, HIDDEN_COLOUR, NO_IMAGE_COLOURS
from nnunet_ssl.report.pictures import draw_preview
from nnunet_ssl.report.planes import LABEL_COLOURS, GreyScale, Plane, fullest_planes, grey_window, middle_planes
from nnunet_ssl.report.progress import draw_comparison, draw_progress
from nnunet_ssl.report.volumes import affine_of, write_volumes


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share(path: Path, colour: str) -> float:
    """Share of a picture's pixels that have a colour."""
    return float((np.abs(pixels(path) - rgb(colour)).max(axis=-1) <= 2).mean())


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 16, 24, 20, generator=torch.Generator().manual_seed(0))


class TestPlanes:
    def test_middle_of_every_axis(self) -> None:
        planes = middle_planes(np.zeros((4, 6, 8)))
        assert planes == [Plane(0, 2), Plane(1, 3), Plane(2, 4)]
        assert middle_planes(np.zeros((4, 6))) == [Plane(None, 0)]

    def test_fullest_planes_show_most_foreground(self) -> None:
        labels = np.zeros((8, 8, 8), int)
        labels[1, 2:5, 3] = 1
        labels[6, 2, 3] = 2
        assert [plane.index for plane in fullest_planes(labels)] == [1, 2, 3]

    def test_extent_follows_spacing(self) -> None:
        image = np.zeros((4, 5, 6))
        assert [Plane(a, 0).extent(image, (3.0, 1.0, 0.5)) for a in range(3)] == [(5, 3), (12, 3), (12, 5)]

    def test_window_ignores_outliers_and_nan_and_is_never_empty(self) -> None:
        values = np.concatenate([np.linspace(0, 1, 1000), [1e6, np.nan, np.inf]])
        low, high = grey_window(values)
        assert 0 <= low < 0.02
        assert 0.98 < high < 1.01
        for flat in (np.full(5, 3.0), np.full(3, np.nan)):
            low, high = grey_window(flat)
            assert low < high


class TestGeometry:
    """Every orientation that an array can have shows the same patient the same way."""

    @staticmethod
    def patient(codes: str) -> np.ndarray:
        """An image [4, 5, 6] or a permutation of it: voxels tell how far head-to-foot, front-to-back, right-to-left they are."""
        size = {"SI": 4, "AP": 5, "RL": 6}
        axes = [next(axis for axis in size if code in axis) for code in codes]
        along = {}
        for number, (axis, code) in enumerate(zip(axes, codes, strict=True)):
            line = np.arange(size[axis])
            shape = [1] * len(codes)
            shape[number] = -1
            along[axis] = (line if code == axis[1] else line[::-1]).reshape(shape)
        return 100 * along["SI"] + 10 * along["AP"] + along["RL"]

    def test_head_up_front_up_and_right_on_the_left(self) -> None:
        upright = self.patient("IPL")
        for order in permutations(range(3)):
            for ends in product((0, 1), repeat=3):
                codes = tuple(("SI", "AP", "RL")[axis][end] for axis, end in zip(order, ends, strict=True))
                geometry = Geometry(codes, tuple(float(axis + 1) for axis in order))
                assert np.array_equal(geometry.displayed(self.patient("".join(codes))), upright)
                assert geometry.displayed_spacing(3) == (1, 2, 3)
                assert [geometry.plane_name(axis) for axis in range(3)] == ["axial", "coronal", "sagittal"]
                assert geometry.marks(0) == Marks("R", "L", "A", "P")
                assert geometry.marks(1) == Marks("R", "L", "S", "I")
                assert geometry.marks(2) == Marks("A", "P", "S", "I")

    def test_a_slice_is_named_by_the_axis_it_lacks(self) -> None:
        flat = Geometry(("S", "A", "R"), (5.0, 1.0, 2.0)).of_slice()
        assert (flat.codes, flat.spacing, flat.plane_name(None)) == (("A", "R"), (1.0, 2.0), "axial")
        assert flat.marks(None) == Marks("R", "L", "A", "P")
        assert np.array_equal(flat.displayed(np.arange(6).reshape(2, 3)), [[5, 4, 3], [2, 1, 0]])

    def test_what_nobody_knows_is_drawn_as_it_lies_and_unmarked(self) -> None:
        image = np.arange(24).reshape(2, 3, 4)
        assert np.array_equal(UNKNOWN.displayed(image), image)
        assert (UNKNOWN.plane_name(1), UNKNOWN.marks(1)) == ("axis 1", None)
        turned = Geometry(("S", "A", "R"), turned=True)
        assert np.array_equal(turned.displayed(image), image[::-1, ::-1, ::-1])
        assert (turned.plane_name(1), turned.marks(1)) == ("axis 1", None)

    @pytest.mark.parametrize("codes", [("S", "I", "R"), ("S", "A", "X"), ("S", "A", "R", "L"), ("S", "AP", "R")])
    def test_refuses_codes_that_no_image_has(self, codes: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="different axes"):
            Geometry(codes)


class TestPreview:
    def test_upside_down_in_the_file_is_upright_in_the_picture(self, tmp_path: Path) -> None:
        """Rows of a file that go from the back to the front, as most NIfTI files have them."""
        image = torch.zeros(1, 4, 20, 20)
        image[:, :, 14:, :] = 1  # the front
        image[:, :, :, 14:] += 1  # towards the patient's left or right
        geometry = Geometry(("S", "A", "R"))
        draw_preview({"input": image}, tmp_path / "a.png", geometry=geometry)
        draw_preview({"input": image.flip(1, 2, 3)}, tmp_path / "b.png", geometry=Geometry(("I", "P", "L")))
        assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
        draw_preview({"input": image}, tmp_path / "unknown.png")
        assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "unknown.png"))

    def test_where_there_is_no_image_there_are_stripes(self, image: torch.Tensor, tmp_path: Path) -> None:
        excluded = torch.zeros_like(image, dtype=torch.bool)
        draw_preview({"input": image, "excluded": excluded}, tmp_path / "none.png")
        excluded[..., 10:] = True
        hidden = torch.ones_like(excluded)
        draw_preview({"input": image, "excluded": excluded}, tmp_path / "half.png")
        draw_preview({"masked": image, "hidden": hidden, "excluded": excluded}, tmp_path / "hidden.png")
        for colour in NO_IMAGE_COLOURS:
            assert share(tmp_path / "none.png", colour) == 0
            assert share(tmp_path / "half.png", colour) > 0.05
            assert share(tmp_path / "hidden.png", colour) == pytest.approx(
                share(tmp_path / "half.png", colour), rel=0.05
            )
        # Stripes end where the voxels do: half of the image is half of its pixels, whichever half it is.
        flat, part = image[:, 0], excluded[:, 0]
        draw_preview({"input": flat, "excluded": part}, tmp_path / "one.png")
        draw_preview({"input": flat, "excluded": ~part}, tmp_path / "other.png")
        both = [sum(share(tmp_path / f"{n}.png", c) for c in NO_IMAGE_COLOURS) for n in ("one", "other")]
        assert both[0] == pytest.approx(both[1], rel=0.02)

    def test_crops_have_stripes_of_their_own(self, image: torch.Tensor, tmp_path: Path) -> None:
        crop = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
        preview = {"region": image, "crop": image[:, :8, :8, :8], "excluded": torch.zeros_like(image, dtype=torch.bool)}
        draw_preview({**preview, "excluded_of_crop": crop}, tmp_path / "none.png")
        draw_preview({**preview, "excluded_of_crop": ~crop}, tmp_path / "all.png")
        colour = NO_IMAGE_COLOURS[1]
        assert share(tmp_path / "none.png", colour) == 0 < share(tmp_path / "all.png", colour)

    def test_a_mask_of_a_place_is_drawn_over_its_image_and_cut_through(
        self, image: torch.Tensor, tmp_path: Path
    ) -> None:
        place = torch.zeros_like(image, dtype=torch.bool)
        place[:, :4, :4, :4] = True  # far from the middle
        draw_preview({"region": image, "target_crop": place}, tmp_path / "place.png")
        draw_preview({"region": image, "target_crop": place & False}, tmp_path / "nothing.png")
        legend = share(tmp_path / "nothing.png", BOX_COLOUR)
        assert share(tmp_path / "place.png", BOX_COLOUR) > 1.5 * legend > 0
        assert share(tmp_path / "place.png", HIDDEN_COLOUR) == 0

    def test_shares_have_one_scale_whatever_the_image(self, tmp_path: Path) -> None:
        """A bright region must not make the overlap white on white."""
        region, areas = torch.full((1, 8, 8), 7.0), torch.ones(1, 8, 8, dtype=torch.int64)
        areas[..., 4:] = 2
        shares = torch.where(areas == 1, 0.0, 1.0)
        for name, brightness in (("dark", 0.0), ("bright", 100.0)):
            draw_preview({"region": region + brightness, "base_crops": areas, "overlap_share": shares}, tmp_path / name)
        dark, bright = pixels(tmp_path / "dark"), pixels(tmp_path / "bright")
        right = slice(dark.shape[1] * 2 // 3, None), slice(20, 250)
        assert np.array_equal(dark[right[1], right[0]], bright[right[1], right[0]])
        for colour in ("#00224E", "#FEE838"):  # the ends of the scale
            assert share(tmp_path / "bright", colour) > 0.02

    def test_grey_values_are_said_in_their_own_unit(self) -> None:
        assert GreyScale("HU", 500.0).window(-2, 2) == "-1000 (black) to 1000 (white), HU"
        assert GreyScale("of the file").window(9e-6, 1235.4) == "0 (black) to 1235 (white), of the file"

    def test_one_column_per_entry_and_one_row_per_axis(self, image: torch.Tensor, tmp_path: Path) -> None:
        draw_preview({"input": image}, tmp_path / "one.png")
        draw_preview({"input": image, "reconstruction": image}, tmp_path / "two.png")
        draw_preview({"input": image[:, 0]}, tmp_path / "flat.png")
        one, two, flat = (Image.open(tmp_path / f"{name}.png").size for name in ("one", "two", "flat"))
        assert 1.7 * one[0] < two[0] < 2.1 * one[0]
        assert two[1] <= one[1] < two[1] + 60  # the lines below are longer or more
        assert flat[1] < 0.6 * one[1]

    def test_corrupted_has_grey_values_of_its_own(self, tmp_path: Path) -> None:
        ramp = torch.linspace(0, 1, 16).expand(1, 16, 16)
        draw_preview({"input": ramp, "corrupted": ramp + 10}, tmp_path / "own.png")
        draw_preview({"input": ramp, "restored": ramp + 10}, tmp_path / "shared.png")
        own, shared = (pixels(tmp_path / f"{name}.png")[..., 0] for name in ("own", "shared"))
        half = own.shape[1] // 2
        assert (own[:, half:] < 128).mean() > 0.3
        assert (shared[:, half:] < 128).mean() < 0.1

    def test_two_views_lie_below_each_other(self, image: torch.Tensor, tmp_path: Path) -> None:
        front, back = image.clone(), image.clone()
        front[:, :, :6], back[:, :, -6:] = 0, 0
        one, other = {"input": image, "masked": front}, {"input": image, "masked": back}
        draw_preview(one, tmp_path / "one.png")
        both = {f"{n}_{view}": v for view, entries in (("a", one), ("b", other)) for n, v in entries.items()}
        draw_preview(both, tmp_path / "both.png")
        width, height = Image.open(tmp_path / "one.png").size
        assert Image.open(tmp_path / "both.png").size[0] == width
        assert 1.7 * height < Image.open(tmp_path / "both.png").size[1] < 2.1 * height
        assert share(tmp_path / "both.png", HIDDEN_COLOUR) == pytest.approx(
            share(tmp_path / "one.png", HIDDEN_COLOUR), rel=0.2
        )

    def test_hidden_voxels_of_masked_stand_out(self, image: torch.Tensor, tmp_path: Path) -> None:
        hidden = torch.zeros_like(image, dtype=torch.bool)
        draw_preview({"masked": image, "hidden": hidden}, tmp_path / "none.png")
        hidden[:, :, :12] = True
        draw_preview({"masked": image.masked_fill(hidden, 0), "hidden": hidden}, tmp_path / "half.png")
        hidden[:] = True
        draw_preview({"masked": image * 0, "hidden": hidden}, tmp_path / "all.png")
        shares = [share(tmp_path / f"{name}.png", HIDDEN_COLOUR) for name in ("none", "half", "all")]
        assert shares[0] == 0
        assert shares[2] > 0.5
        # Half of the planes of axes 0 and 2 is hidden, and the middle plane of axis 1 is the first visible one.
        assert 0.2 * shares[2] < shares[1] < 0.5 * shares[2]

    def test_hidden_is_what_was_replaced_by_one_value(self, image: torch.Tensor, tmp_path: Path) -> None:
        hidden = torch.zeros_like(image, dtype=torch.bool)
        hidden[:, 8:] = True
        masked = image.masked_fill(hidden, 0)
        draw_preview({"input": image, "masked": masked}, tmp_path / "derived.png")
        draw_preview({"input": image, "masked": masked, "hidden": hidden}, tmp_path / "given.png")
        draw_preview({"input": image, "masked": torch.where(hidden, image * 2, image)}, tmp_path / "noise.png")
        assert np.array_equal(pixels(tmp_path / "derived.png"), pixels(tmp_path / "given.png"))
        assert share(tmp_path / "derived.png", HIDDEN_COLOUR) > 0.1
        assert share(tmp_path / "noise.png", HIDDEN_COLOUR) == 0

    def test_hidden_without_masked_is_a_column_of_its_own(self, image: torch.Tensor, tmp_path: Path) -> None:
        draw_preview({"input": image, "hidden": image > 0}, tmp_path / "mask.png")
        draw_preview({"input": image}, tmp_path / "image.png")
        assert Image.open(tmp_path / "mask.png").size[0] > 1.7 * Image.open(tmp_path / "image.png").size[0]
        assert 0.1 < share(tmp_path / "mask.png", HIDDEN_COLOUR) < 0.3

    def test_all_images_share_the_window_of_the_first(self, tmp_path: Path) -> None:
        ramp = torch.linspace(0, 1, 400).view(1, 20, 20)
        draw_preview({"input": ramp, "reconstruction": torch.full_like(ramp, 0.5)}, tmp_path / "a.png")
        picture = pixels(tmp_path / "a.png")
        assert abs(picture[picture.shape[0] // 2, picture.shape[1] * 3 // 4] - 127).max() <= 3

    def test_errors_and_labels_are_coloured(self, image: torch.Tensor, tmp_path: Path) -> None:
        draw_preview({"voxel_error": image}, tmp_path / "error.png")
        picture = pixels(tmp_path / "error.png")
        assert (np.ptp(picture, axis=-1) > 60).mean() > 0.3
        draw_preview({"labels": (image > 0).long() * 2}, tmp_path / "labels.png")
        assert share(tmp_path / "labels.png", LABEL_COLOURS[1]) > 0.2

    def test_voxels_keep_their_proportions(self, image: torch.Tensor, tmp_path: Path) -> None:
        draw_preview({"input": image[:, :2, :10]}, tmp_path / "thin.png")
        draw_preview({"input": image[:, :2, :10]}, tmp_path / "thick.png", geometry=Geometry(spacing=(10, 1, 1)))
        thin, thick = (Image.open(tmp_path / f"{name}.png").size for name in ("thin", "thick"))
        assert thick[1] > 1.5 * thin[1]

    def test_odd_but_allowed(self, image: torch.Tensor, tmp_path: Path) -> None:
        """Several channels, half precision, NaN, other sizes, a constant image, numpy: a picture must not stop a run."""
        preview = {
            "two_channels": image.repeat(2, 1, 1, 1).bfloat16(),
            "crop": image[:, :5, :6, :7].half(),
            "broken": np.full((1, 16, 24, 20), np.nan, np.float32),
            "constant": torch.ones(1, 16, 24, 20),
        }
        draw_preview(preview, tmp_path / "odd.png", "a title", Geometry(spacing=(2, 1, 1)))
        assert Image.open(tmp_path / "odd.png").format == "PNG"

    @pytest.mark.parametrize(
        ("preview", "message"),
        [
            ({}, "no entries"),
            ({"x": torch.zeros(2, 1, 4, 4, 4)}, r"\(2, 1, 4, 4, 4\)"),
            ({"x": torch.zeros(1, 4, 4), "y": torch.zeros(1, 4, 4, 4)}, "2D or 3D"),
        ],
    )
    def test_refuses_what_is_no_image(self, preview: dict, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            draw_preview(preview, tmp_path / "x.png")

    def test_refuses_a_spacing_that_does_not_fit(self, image: torch.Tensor, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="3 positive numbers"):
            draw_preview({"x": image}, tmp_path / "x.png", geometry=Geometry(spacing=(1, 1)))


class TestOverlay:
    def test_labels_have_their_colours_and_the_truth_a_white_line(self, image: torch.Tensor, tmp_path: Path) -> None:
        grey = torch.zeros_like(image[0])  # a constant image is drawn in the middle of its window
        truth = np.zeros((16, 24, 20), int)
        truth[4:12, 6:18, 5:15] = 1
        nothing = np.zeros_like(truth)
        draw_overlay(grey, {"truth": truth, "wrong": nothing}, tmp_path / "a.png", title="case")
        draw_overlay(grey, {"truth": truth, "right": truth}, tmp_path / "b.png", title="case")
        tint = "#" + "".join(f"{round(0.45 * v + 0.55 * 128):02x}" for v in rgb(LABEL_COLOURS[0]))
        assert share(tmp_path / "a.png", tint) > 0.03
        assert 1.8 < share(tmp_path / "b.png", tint) / share(tmp_path / "a.png", tint) < 2.2
        assert share(tmp_path / "a.png", LABEL_COLOURS[0]) > 0

    def test_refuses_other_shapes(self, image: torch.Tensor, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"'truth' has shape \(4, 4, 4\), the image \(16, 24, 20\)"):
            draw_overlay(image[0], {"truth": np.zeros((4, 4, 4), int)}, tmp_path / "x.png")
        with pytest.raises(ValueError, match="no segmentation"):
            draw_overlay(image[0], {}, tmp_path / "x.png")

    def test_two_dimensions_and_no_foreground(self, tmp_path: Path) -> None:
        draw_overlay(np.random.rand(1, 8, 9), {"truth": np.zeros((8, 9), int)}, tmp_path / "x.png")
        assert Image.open(tmp_path / "x.png").format == "PNG"


class TestProgress:
    def logging(self, epochs: int) -> dict[str, list]:
        return {
            "train_losses": [1 / (i + 1) for i in range(epochs)],
            "val_losses": [float("nan")] * epochs,
            "lrs": [0.01] * epochs,
            "epoch_start_timestamps": [10.0 * i for i in range(epochs)],
            "epoch_end_timestamps": [10.0 * i + 8 for i in range(epochs)],
        }

    @pytest.mark.parametrize("epochs", [0, 1, 40])
    def test_any_number_of_epochs(self, epochs: int, tmp_path: Path) -> None:
        draw_progress(self.logging(epochs), tmp_path / "progress.png")
        assert Image.open(tmp_path / "progress.png").size[0] > 500

    def test_terms_get_a_panel(self, tmp_path: Path) -> None:
        draw_progress(self.logging(3), tmp_path / "without.png")
        draw_progress({**self.logging(3), "mse_hidden": [3.0, 2.0, 1.0]}, tmp_path / "with.png")
        draw_progress({**self.logging(3), "dice_per_class": [[0.1, 0.2]] * 3, "later": []}, tmp_path / "lists.png")
        heights = [Image.open(tmp_path / f"{name}.png").size[1] for name in ("without", "with", "lists")]
        assert heights[1] > heights[0] == heights[2]

    def test_missing_keys_and_uneven_lists(self, tmp_path: Path) -> None:
        draw_progress({}, tmp_path / "empty.png")
        uneven = {**self.logging(4), "epoch_end_timestamps": [8.0, 18.0], "term": [None, 1.0]}
        draw_progress(uneven, tmp_path / "uneven.png")
        assert not np.array_equal(pixels(tmp_path / "empty.png")[:200], pixels(tmp_path / "uneven.png")[:200])

    def test_other_plots_defaults_do_not_reach_it(self, tmp_path: Path) -> None:
        draw_progress(self.logging(3), tmp_path / "a.png")
        with matplotlib.rc_context(
            {"font.size": 40, "axes.facecolor": "red", "lines.linewidth": 20, "axes.grid": True}
        ):
            draw_progress(self.logging(3), tmp_path / "b.png")
        assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))

    def test_comparison_draws_every_run(self, tmp_path: Path) -> None:
        runs = {"one": self.logging(5), "two": {"train_losses": [3.0, 2.0]}}
        draw_comparison(runs, tmp_path / "two.png", {"train_losses": "loss", "mean_fg_dice": "Dice"})
        draw_comparison({"one": runs["one"]}, tmp_path / "one.png", {"train_losses": "loss", "mean_fg_dice": "Dice"})
        assert share(tmp_path / "two.png", "#D55E00") > share(tmp_path / "one.png", "#D55E00") == 0


class TestVolumes:
    """Previews as NIfTI: a viewer finds the sides of the patient and the size of voxels."""

    @pytest.mark.parametrize("codes", ["SPL", "RAS", "LIP", "ASR"])
    def test_sides_and_sizes(self, codes: str, tmp_path: Path) -> None:
        geometry = Geometry(tuple(codes), (3.0, 1.0, 0.5))
        preview = {
            "input": np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32),
            "hidden": np.ones((1, 4, 5, 6), bool),
        }
        write_volumes(preview, tmp_path / "epoch", geometry)
        image, mask = (nibabel.load(tmp_path / "epoch" / f"{name}.nii.gz") for name in preview)
        assert "".join(nibabel.aff2axcodes(image.affine)) == codes
        assert nibabel.affines.voxel_sizes(image.affine) == pytest.approx([3.0, 1.0, 0.5])
        np.testing.assert_array_equal(np.moveaxis(image.get_fdata(), -1, 0), preview["input"])
        assert mask.get_data_dtype() == np.int16
        assert (mask.affine == image.affine).all()
        assert image.header["sform_code"] == 1

    def test_a_slice_and_an_unknown_or_turned_image_make_no_claim(self, tmp_path: Path) -> None:
        write_volumes({"input": np.zeros((1, 4, 5))}, tmp_path, Geometry(("P", "L"), (2.0, 3.0)))
        flat = nibabel.load(tmp_path / "input.nii.gz")
        assert flat.shape == (4, 5, 1)
        assert "".join(nibabel.aff2axcodes(flat.affine))[:2] == "PL"
        for geometry in (UNKNOWN, Geometry(("S", "P", "L"), turned=True)):
            write_volumes({"input": np.zeros((1, 4, 5, 6))}, tmp_path, geometry)
            assert nibabel.load(tmp_path / "input.nii.gz").header["sform_code"] == 0
        assert np.linalg.det(affine_of(UNKNOWN, 3)) != 0
