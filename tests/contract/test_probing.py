"""Probes while pre-training: they say what features are worth, and change nothing about the training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from nnunet_ssl.errors import CorpusError, SettingsError
from nnunet_ssl.features.scans import Scan
from nnunet_ssl.testing.tiny_training import TinyTraining, assert_same, losses, weights
from nnunet_ssl.trainers.data.probe_images import block_means, centre, require_probe


@pytest.fixture
def probed(tiny_training: TinyTraining) -> Path:
    """A raw data set 778 of 24 images: blocks that are bright or dark, labelled, of 12 people."""
    folder = tiny_training.folder / "raw" / "Dataset778_Probe"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        image = gaussian_filter(rng.normal(size=(18, 26, 14)), 1.5) * 3 + 10
        label = np.zeros(image.shape, np.uint8)
        label[4:12, 6 + number % 4 : 18, 3:11] = 1
        image += label * (6 if number // 2 % 2 else 12)
        name = f"p{number // 2:02d}_{number % 2}"
        sitk.WriteImage(
            sitk.GetImageFromArray(image.astype(np.float32)), str(folder / "imagesTr" / f"{name}_0000.nii.gz")
        )
        sitk.WriteImage(sitk.GetImageFromArray(label), str(folder / "labelsTr" / f"{name}.nii.gz"))
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "block": 1}, "numTraining": 24}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    return folder


def write_targets(folder: Path) -> None:
    rows = [f"p{n // 2:02d}_{n % 2},{n // 2 % 2}" for n in range(24)]
    (folder / "targets.csv").write_text("\n".join(["case,bright", *rows]) + "\n")


def run(tiny: TinyTraining, backbone: str, **settings: Any) -> Any:
    trainer = tiny.trainer("mae", tiny.plans(backbone, {"num_epochs": 2, **settings}))
    trainer.output_folder = str(tiny.folder / f"run_{backbone}_{len(settings)}")
    Path(trainer.output_folder).mkdir()
    trainer.log_file = f"{trainer.output_folder}/log.txt"
    trainer.run_training()
    return trainer


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_a_probe_tells_the_segmentation_and_changes_nothing(
    backbone: str, tiny_training: TinyTraining, probed: Path
) -> None:
    plain, with_probe = run(tiny_training, backbone), run(tiny_training, backbone, probe="778", probe_every=1)
    assert_same(weights(plain), weights(with_probe))
    assert losses(plain) == losses(with_probe)
    curve = with_probe.logger.local_logger.my_fantastic_logging["probe_soft_Dice"]
    assert len(curve) == 2
    assert min(curve) > 0.3
    log = Path(with_probe.log_file).read_text()
    assert "a linear model tells its segmentations from frozen features of 24 images of 778" in log
    assert log.count("Probe: soft Dice ") == 2
    assert "of the epochs since the last" in log


def test_a_probe_tells_targets_after_some_epochs(tiny_training: TinyTraining, probed: Path) -> None:
    write_targets(probed)
    trainer = run(tiny_training, "unet", probe="Dataset778_Probe", probe_every=2)
    (name,) = (key for key in trainer.logger.local_logger.my_fantastic_logging if key.startswith("probe_"))
    curve = trainer.logger.local_logger.my_fantastic_logging[name]
    assert name == "probe_bright_AUROC"
    assert math.isnan(curve[0])
    assert 0.0 <= curve[1] <= 1.0


def test_what_cannot_be_probed_is_said_before_anything_begins(tiny_training: TinyTraining, probed: Path) -> None:
    require_probe(None, True)
    require_probe("778", False)
    with pytest.raises(SettingsError, match="--shard"):
        require_probe("778", True)
    with pytest.raises(CorpusError, match="no data set 779"):
        require_probe("779", False)
    for file in (probed / "labelsTr").iterdir():
        file.unlink()
    with pytest.raises(CorpusError, match="has neither"):
        require_probe("778", False)
    (probed / "targets.csv").write_text("case,bright\np00_0,1\nnobody,2\n")
    with pytest.raises(CorpusError, match="there is no case nobody"):
        require_probe("778", False)


def test_the_centre_is_cut_or_padded_and_labels_go_along() -> None:
    image = np.arange(4 * 6 * 5, dtype=np.float32).reshape(1, 4, 6, 5) + 1
    labels = (image[0] > 60).astype(int)
    shown = centre(Scan("a", ()), image, labels, (8, 4, 5))
    assert shown.image.shape == (1, 8, 4, 5)
    np.testing.assert_array_equal(shown.image[0, 2:6], image[0, :, 1:5])
    np.testing.assert_array_equal(shown.labels[2:6], labels[:, 1:5])
    assert shown.inside.sum() == 4 * 4 * 5
    assert (shown.image.numpy()[0] == 0).sum() == shown.image.numel() - shown.inside.sum()
    means = block_means(shown.inside[None], (4, 2, 1))
    np.testing.assert_allclose(means[0, :, 0, 0], [0, 1, 1, 0])
