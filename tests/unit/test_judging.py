"""Runs that learn nothing are told from runs that learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.methods.base import Method
from nnunet_ssl.trainers.loop.judging import YARDSTICK, collapse, verdict

LEARNED = {"val_losses": [0.9, 0.5], YARDSTICK: [1.0, 1.0]}


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (LEARNED, None),
        ({**LEARNED, "val_losses": [0.9, 0.999]}, "no better than an answer that does not look"),
        ({**LEARNED, "val_losses": [0.9, 1.3]}, "no better than"),
        (
            {"val_losses": [-0.1, -0.2], YARDSTICK: [-0.1, -0.1]},
            None,
        ),  # volume fusion's loss is negative when it is good
        ({"val_losses": [-0.1, -0.1], YARDSTICK: [-0.1, -0.1]}, "no better than"),
        ({**LEARNED, "val_spread": [0.9, 0.01]}, "embeddings have collapsed"),
        ({**LEARNED, "val_spread": [0.9, 0.5], "val_effective_rank": [9.0, 1.13]}, "little more than one direction"),
        ({**LEARNED, "val_spread": [0.9, 0.5], "val_effective_rank": [9.0, 3.0]}, None),
        # A task that also paints: consistent_views on real hippocampi.
        ({**LEARNED, "val_spread": [0.9], "val_effective_rank": [1.8], "val_explained_variance": [0.28]}, None),
        (
            {**LEARNED, "val_spread": [0.9], "val_effective_rank": [1.65], "val_explained_variance": [-9.9]},
            "one direction",
        ),
        ({"val_losses": [0.5, 0.5]}, None),  # no yardstick is known
        ({"val_losses": [0.5, float("nan")], YARDSTICK: [1.0, float("nan")]}, None),
    ],
)
def test_collapse(log: dict[str, Any], reason: str | None) -> None:
    said = collapse(log, num_epochs=10, steps_per_epoch=250, images=8)
    assert (said is None) if reason is None else reason in str(said)
    assert collapse(log, num_epochs=1000, steps_per_epoch=250, images=8) is None, (
        "nothing is said before a tenth of the run"
    )
    assert collapse(log, num_epochs=10, steps_per_epoch=20, images=8) is None, "nor before some hundred steps"


def test_few_images_use_few_directions_and_are_no_collapse() -> None:
    """Two images told apart as well as can be use one direction."""
    log = {**LEARNED, "val_spread": [1.0, 1.0], "val_effective_rank": [1.0, 1.0]}
    assert collapse(log, 10, 250, images=2) is None
    assert "one direction" in str(collapse(log, 10, 250, images=5))


def test_verdict() -> None:
    assert verdict(LEARNED, "the mean grey value") == (
        "Learned: the validation loss is 0.5; the mean grey value would give 1."
    )
    explained = verdict({**LEARNED, "val_explained_variance": [0.1, 0.41]}, "the mean grey value")
    assert explained.endswith("It explains 41% of the variance.")
    assert verdict({**LEARNED, "val_losses": [1.0]}, "x").startswith("No better than guessing")
    assert "no yardstick" in verdict({"val_losses": [1.0]}, "x")
    assert "nothing can be said" in verdict({}, "x")


def test_every_task_of_ours_has_a_yardstick_and_says_what_it_is() -> None:
    for name in method_names():
        method = get_method(name)
        if method.__module__.startswith("nnunet_ssl."):
            assert method.yardstick is not Method.yardstick
            assert method.trivial_answer != Method.trivial_answer


def test_third_party_tasks_need_none() -> None:
    method = torch.nn.Module.__new__(Method)
    assert method.yardstick({}) is None
