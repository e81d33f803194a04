"""The table of docs/methods/README.md: every method on every kind of plans, or an error that says what to do."""

from __future__ import annotations

import pytest
import torch

from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.testing import steps, steps_of
from nnunet_ssl.testing.tiny_step import prepare, tiny_batch, tiny_method

OWN = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
SMALL = {  # what the recipe has too large for tiny patches
    "mae": {"mask_block": 8},
    "simmim": {"mask_block": 8},
    "simclr": {"projector_dim": 64},
    "voco": {"projector_dim": 64},
    "consistent_views": {"projector_dim": 64},
    "swin_unetr": {"embedding_dim": 32},
    "self_distillation": {"projector_dim": 64, "prototypes": 48, "compared_tokens": 16},
}
TestSteps = steps_of(*OWN, settings=SMALL)


@pytest.mark.parametrize("method", ["simclr", "swin_unetr"])
def test_tasks_that_compare_images_refuse_a_single_one(method):
    cls, patch = get_method(method), (16, 16, 16)
    task = tiny_method(cls, "unet", patch, settings=SMALL[method])
    with pytest.raises(ValueError, match=r"got a batch of one.*--batch-size \d+"):
        prepare(task, tiny_batch(cls, patch, images=1, settings=SMALL[method]))


def test_a_task_with_random_numbers_of_its_own_breaks_the_contract(monkeypatch):
    class Careless(get_method("mae")):
        def prepare(self, batch, generator):
            image = batch["image"]
            return super().prepare({**batch, "image": image + torch.rand_like(image)}, generator)

    monkeypatch.setattr(steps, "get_method", lambda _: Careless)
    with pytest.raises(AssertionError):
        steps.StepContract().test_same_generator_same_inputs("careless", SMALL["mae"])
