"""Settings and plans are tried before images are prepared."""

from __future__ import annotations

from copy import deepcopy

import pytest

from nnunet_ssl.errors import BackboneError, CorpusError, SettingsError
from nnunet_ssl.planners.plans_check import require_complete
from nnunet_ssl.planners.to_estimate import plans_without_data
from nnunet_ssl.trainers import rehearsal
from nnunet_ssl.trainers.rehearsal import rehearse, rehearse_sizes

NAME = "3d_fullres"
COMPLETE = {
    "plans_name": "P",
    "dataset_name": "Dataset001_A",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {},
}
ENTRIES = {
    "data_identifier": "P_3d_fullres",
    "preprocessor_name": "SSLPreprocessor",
    "batch_size": 2,
    "patch_size": [64, 64, 64],
    "spacing": [1.0, 1, 1],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "architecture": {},
    "what nnU-Net may add": 1,
}


def plans(kind: str = "ResEncTiny", **ssl):
    made = plans_without_data(f"SSLPlanner{kind}")
    made["configurations"][NAME]["ssl"].update(ssl)
    return made


def test_what_can_be_trained_passes():
    for kind in ("ResEncTiny", "PrimusTiny"):
        rehearse(plans(kind), NAME, "mae", 1)
    rehearse(plans(simclr={"crop_size": 32}, batch_size=4), NAME, "simclr", 2)


@pytest.mark.parametrize(
    ("method", "ssl", "processes", "error", "message"),
    [
        ("mae", {"mae": {"loss": "l3"}}, 1, SettingsError, 'loss is "l2" or "l1"'),
        ("simclr", {"simclr": {"crop_size": 400}}, 1, SettingsError, r"simclr with patches of \(64, 64, 64\) voxels: A crop"),
        ("simclr", {"simclr": {"crop_size": 33}}, 1, BackboneError, "not a multiple"),
        ("spark3d", {"spark3d": {"mask_block": 9}}, 1, SettingsError, r"next valid block is .*\[16, 16, 16\]"),
        ("mae", {"warmup_epochs": 60}, 1, SettingsError, "Set warmup_epochs below num_epochs"),
        ("mae", {"batch_size": 7}, 2, SettingsError, "--batch-size 8"),
    ],
)  # fmt: skip
def test_what_would_stop_a_training_at_its_start_is_told(method, ssl, processes, error, message):
    with pytest.raises(error, match=message):
        rehearse(plans(**ssl), NAME, method, processes)


def test_a_network_that_cannot_be_built_without_memory_is_left_to_the_training(monkeypatch):
    def wants_memory(*_, **__):
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(rehearsal, "build_method", wants_memory)
    rehearse(plans(), NAME, "mae", 1)


def test_of_sizes_that_are_not_known_yet_one_has_to_do():
    crop = plans(simclr={"crop_size": [48, 48, 48]})
    rehearse_sizes(crop, NAME, "simclr", 1, [(32, 32, 32), (64, 64, 64)])
    with pytest.raises(SettingsError, match=r"patches of \(40, 40, 40\)"):
        rehearse_sizes(crop, NAME, "simclr", 1, [(40, 40, 40), (32, 32, 32)])


def test_plans_that_were_edited_by_hand():
    require_complete(COMPLETE, ENTRIES, NAME)
    wrong = deepcopy(ENTRIES)
    del wrong["spacing"]
    wrong.update(batch_size="8", patch_size=[64, 0, 64], use_mask_for_norm=["no"])
    with pytest.raises(CorpusError) as caught:
        require_complete({**COMPLETE, "transpose_forward": 3}, wrong, NAME)
    said = str(caught.value)
    parts = (
        "The plans P of Dataset001_A",
        "transpose_forward must be a list",
        "batch_size must be a whole number >= 1, found '8'",
        "patch_size must be a list",
        "use_mask_for_norm must be",
        "spacing must be given",
        "plan anew",
    )
    assert [part for part in parts if part not in said] == []
