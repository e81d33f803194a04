"""Single steps of every task, on every kind of plans: no trainer, no data, a second each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods import get_method
from nnunet_ssl.methods.tensors import disagreements
from nnunet_ssl.testing.tiny_step import prepare, tiny_batch, tiny_method
from nnunet_ssl.testing.waiting import step_without_waiting

PLANS = [  # network, voxels of a patch, channels, images
    ("unet", (16, 16, 16), 1, 1),
    ("unet", (16, 24, 32), 3, 2),
    ("plain", (24, 40), 2, 2),
    ("primus", (16, 24, 32), 2, 2),
    ("primus", (24, 24, 24), 1, 1),
]


@pytest.mark.filterwarnings("ignore:.*is too small")
class StepContract:
    """What every task owes the trainer in a step. Nothing in here knows any of them."""

    settings: Mapping[str, Mapping[str, Any]] = {}  # by task: fields of its Config that are not the defaults
    axes: tuple[int, ...] = (2, 3)  # numbers of axes the tasks work on

    @pytest.fixture
    def own(self, method: str) -> dict[str, Any]:
        """Settings of the task under test."""
        return dict(self.settings.get(method, {}))

    @pytest.mark.parametrize(("kind", "patch", "channels", "images"), PLANS)
    def test_one_step_on_any_plans(
        self, method: str, own: Any, kind: str, patch: tuple[int, ...], channels: int, images: int
    ) -> None:
        """Inputs as said, and a finite loss that moves the network and can be shown; or an error that says what to do."""
        cls = get_method(method)
        if len(patch) not in self.axes:
            pytest.skip(f"{method} does not work on {len(patch)} axes")
        if kind == "primus" and "primus" not in cls.backbones:
            with pytest.raises(BackboneError, match="works on unet networks, not on primus"):
                tiny_method(cls, kind, patch, channels, settings=own)
            return
        task, batch = (
            tiny_method(cls, kind, patch, channels, settings=own),
            tiny_batch(cls, patch, channels, images, own),
        )
        try:
            inputs = prepare(task, batch)
        except ValueError as error:
            if images < task.images_needed and re.search(r"--batch-size \d+", str(error)):
                return  # it needs more images, and says what to type
            raise
        assert disagreements(task.Inputs, inputs) == []
        assert task.Encoded is None or disagreements(task.Encoded, task.encode(inputs)) == []
        output = task(inputs)
        output.loss.backward()
        assert output.loss.isfinite()
        moved = {n for n, p in task.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert any(n.startswith("backbone.network") for n in moved)
        assert all(len(image) == images for image in output.preview.values())

    def test_a_patch_that_does_not_fit_says_what_to_type(self, method: str, own: Any) -> None:
        """The next valid size, and the flag that sets it: of the patch, or of the task's own crops."""
        cls = get_method(method)
        given = {**own, "crop_size": (10, 12, 12)} if cls.crop_setting else own
        patch = (16, 24, 24) if cls.crop_setting else (10, 12, 12)
        flag = rf"--set {cls.crop_setting}=\[12,12,12\]" if cls.crop_setting else "--patch-size 12 12 12"
        with pytest.raises(BackboneError, match=rf"next valid size is \(12, 12, 12\): {flag}"):
            tiny_method(cls, "unet", patch, settings=given)

    def test_same_generator_same_inputs(self, method: str, own: Any) -> None:
        """Every random number comes from the generator that is given: what makes runs repeatable and resumable."""
        cls, patch = get_method(method), (24, 40, 24)
        task = tiny_method(cls, "unet", patch, settings=own)
        first, again, other = (prepare(task, tiny_batch(cls, patch, settings=own), seed) for seed in (1, 1, 2))
        assert all(torch.equal(first[k], again[k]) for k in first)
        assert any(not torch.equal(first[k], other[k]) for k in first)

    @pytest.mark.parametrize("parts", [1, 2])
    @pytest.mark.parametrize("kind", ["unet", "primus"])
    def test_a_step_does_not_wait_for_a_gpu(self, method: str, own: Any, kind: str, parts: int) -> None:
        """Nothing between a batch and its gradients asks the device for a value, see `nnunet_ssl.testing.waiting`."""
        cls, patch = get_method(method), (16, 24, 32)
        if kind not in cls.backbones:
            pytest.skip(f"{method} does not work on {kind} networks")
        task = tiny_method(cls, kind, patch, 2, settings=own)
        step_without_waiting(task, tiny_batch(cls, patch, 2, 4, own), parts)


def steps_of(
    *methods: str, settings: Mapping[str, Mapping[str, Any]] | None = None, axes: tuple[int, ...] = (2, 3)
) -> type[StepContract]:
    """`StepContract` for these tasks; see `contract_of`."""
    for method in methods:
        get_method(method)
    cls = type("Steps", (StepContract,), {"settings": dict(settings or {}), "axes": axes})
    return pytest.mark.parametrize("method", methods)(cls)
