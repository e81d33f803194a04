"""The contract that our own pretext tasks pass, for tasks of other packages.

One line in a test file, once the task is installed:

    from nnunet_ssl.testing import contract_of

    TestDenoising = contract_of("denoising")

pytest then makes single steps on every kind of plans (`steps`), and trains, stops, resumes, exports and fine-tunes tiny
networks on the CPU (`runs`): about a minute for a task on both backbones. For tests of your own there is a fixture,
`tiny_training`: import it into your conftest.py. pytest comes with `pip install nnunet_ssl[testing]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("nnunet_ssl.testing.steps", "nnunet_ssl.testing.runs")

from nnunet_ssl.testing.runs import RunContract, runs_of  # noqa: E402  # asserts are rewritten at the import
from nnunet_ssl.testing.steps import StepContract, steps_of  # noqa: E402
from nnunet_ssl.testing.tiny_training import TinyTraining, prepare_tiny_training  # noqa: E402

__all__ = ["RunContract", "StepContract", "TinyTraining", "contract_of", "runs_of", "steps_of", "tiny_training"]


def contract_of(
    *methods: str, settings: Mapping[str, Mapping[str, Any]] | None = None, axes: tuple[int, ...] = (2, 3)
) -> type:
    """A class of tests, to be bound to a name that begins with Test; `runs_of` and `steps_of` are its two halves.

    methods: names of installed tasks. settings: of a task, fields of its Config that differ from the defaults, where those
    are too large for patches of 16 voxels. axes: numbers of axes the task works on; (3,) where it needs volumes.
    Raises SettingsError for names that are not installed.
    """

    class Contract:
        class TestSteps(steps_of(*methods, settings=settings, axes=axes)):  # type: ignore[misc]
            pass

        class TestRuns(runs_of(*methods, settings=settings)):  # type: ignore[misc]
            pass

    return Contract


@pytest.fixture
def tiny_training(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyTraining]:
    """Plans and trainers on a tiny preprocessed data set, see `TinyTraining`; nnU-Net's folders are set meanwhile."""
    with prepare_tiny_training(tmp_path, tmp_path_factory) as tiny:
        yield tiny
