from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_ssl.report.pictures import HIDDEN_COLOUR, draw_overlay, draw_preview
from nnunet_ssl.report.planes import LABEL_COLOURS, Plane, fullest_planes, grey_window, middle_planes
from nnunet_ssl.report.progress import draw_comparison, draw_progress


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

    def test_head_is_up(self) -> None:
        image = np.arange(4)[:, None, None] * np.ones((4, 5, 6))
        for axis in (1, 2):
            assert Plane(axis, 0).cut(image)[0, 0] == 3
        assert Plane(0, 3).cut(image)[0, 0] == 3

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


class TestPreview:
    def test_one_column_per_entry_and_one_row_per_axis(self, image: torch.Tensor, tmp_path: Path) -> None:
        draw_preview({"input": image}, tmp_path / "one.png")
        draw_preview({"input": image, "reconstruction": image}, tmp_path / "two.png")
        draw_preview({"input": image[:, 0]}, tmp_path / "flat.png")
        one, two, flat = (Image.open(tmp_path / f"{name}.png").size for name in ("one", "two", "flat"))
        assert 1.7 * one[0] < two[0] < 2.1 * one[0]
        assert abs(one[1] - two[1]) <= 1
        assert flat[1] < one[1] / 2

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
        draw_preview({"input": image[:, :2, :10]}, tmp_path / "thick.png", spacing=(10, 1, 1))
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
        draw_preview(preview, tmp_path / "odd.png", "a title", spacing=(2, 1, 1))
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
            draw_preview({"x": image}, tmp_path / "x.png", spacing=(1, 1))


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
