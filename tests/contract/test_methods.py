"""What every pretext task owes its users, on every backbone it works on: the contract of `nnunet_ssl.testing`."""

from __future__ import annotations

import pytest

from nnunet_ssl.methods import method_names
from nnunet_ssl.testing import runs_of
from nnunet_ssl.testing.tiny_training import assert_same, losses, weights

TestMethod = runs_of(*method_names())


class Stop(Exception):
    """Ends a run between two epochs, as a power cut would."""


def run_until(trainer, epoch: int) -> None:
    """Train and break off when `epoch` epochs are done and saved."""
    original = trainer.on_epoch_end

    def on_epoch_end() -> None:
        original()
        if trainer.current_epoch == epoch:
            raise Stop

    trainer.on_epoch_end = on_epoch_end
    with pytest.raises(Stop):
        trainer.run_training()


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_two_and_two_epochs_are_four(backbone, tiny_training):
    plans = tiny_training.plans(backbone)
    run_until(tiny_training.trainer("mae", plans), epoch=2)
    resumed = tiny_training.resumed(tiny_training.trainer("mae", plans))
    assert resumed.current_epoch == 2
    resumed.run_training()
    straight = tiny_training.finished("mae", backbone, 4)
    assert_same(weights(straight), weights(resumed))
    assert losses(straight) == losses(resumed)
