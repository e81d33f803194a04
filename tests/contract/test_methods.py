"""What every pretext task owes its users, on every backbone it works on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.trainers.launch import trainer_class

PAIRS = [(m, b) for m in method_names() for b in get_method(m).backbones]


def weights(trainer) -> dict[str, torch.Tensor]:
    """All weights of network and heads, copied."""
    return {k: v.detach().clone() for k, v in trainer.method.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal to the last bit."""
    assert first.keys() == second.keys()
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


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


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
class TestMethod:
    """One class for all methods; nothing in it knows any of them."""

    def test_runs_are_repeatable_and_leave_everything_behind(self, method, backbone, make_trainer, plans_for, tmp_path):
        results = []
        for attempt in range(2):
            trainer = make_trainer(trainer_class(method), plans_for(backbone, {"num_epochs": 2}))
            trainer.output_folder = str(tmp_path / f"run{attempt}")
            Path(trainer.output_folder).mkdir()
            trainer.log_file = str(tmp_path / f"run{attempt}" / "training_log.txt")
            trainer.run_training()
            trainer.perform_actual_validation()
            results.append(weights(trainer))
        assert_same(*results)
        folder = Path(trainer.output_folder)
        for name in ("checkpoint_final.pth", "progress.png", "previews/epoch_0002.png", "validation/summary.json"):
            assert (folder / name).is_file(), name
        assert len(list((folder / "validation").glob("*.png"))) >= 1
        log = (folder / "training_log.txt").read_text()
        assert "train_loss" in log
        assert "Terms: " in log

    def test_checkpoint_is_plain_data_and_holds_the_bare_network(self, method, backbone, make_trainer, plans_for):
        trainer = make_trainer(trainer_class(method), plans_for(backbone, {"num_epochs": 1}))
        trainer.run_training()
        checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
        bare = type(trainer).build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, trainer.method.backbone.out_channels, False
        )
        assert set(bare.state_dict()) == set(checkpoint["network_weights"])
        assert checkpoint["ssl"]["method"] == method
        assert checkpoint["ssl"]["heads"].keys() == trainer.method.heads().keys()
        assert checkpoint["nnssl_adaptation_plan"]["pretrain_num_input_channels"] == 1

    def test_two_and_two_epochs_are_four(self, method, backbone, make_trainer, plans_for, tmp_path):
        straight = make_trainer(trainer_class(method), plans_for(backbone))
        straight.output_folder = str(tmp_path / "straight")
        (tmp_path / "straight").mkdir()
        straight.run_training()
        run_until(make_trainer(trainer_class(method), plans_for(backbone)), epoch=2)
        resumed = make_trainer(trainer_class(method), plans_for(backbone))
        resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
        assert resumed.current_epoch == 2
        resumed.run_training()
        assert_same(weights(straight), weights(resumed))
        logged = [t.logger.local_logger.my_fantastic_logging for t in (straight, resumed)]
        assert logged[0]["train_losses"] == logged[1]["train_losses"]
        assert logged[0]["val_losses"] == logged[1]["val_losses"]

    def test_sigterm_inside_an_epoch_loses_nothing(self, method, backbone, make_trainer, plans_for, tmp_path):
        plans = plans_for(backbone, {"num_epochs": 2})
        straight = make_trainer(trainer_class(method), plans)
        straight.output_folder = str(tmp_path / "straight")
        (tmp_path / "straight").mkdir()
        straight.run_training()
        stopped = make_trainer(trainer_class(method), plans)
        original = stopped.train_step

        def train_step(batch):
            if stopped.current_epoch == 1 and stopped._iteration == 1:
                signal.raise_signal(signal.SIGTERM)
            return original(batch)

        stopped.train_step = train_step
        with pytest.raises(SystemExit) as exit_code:
            stopped.run_training()
        assert exit_code.value.code == 128 + signal.SIGTERM
        resumed = make_trainer(trainer_class(method), plans)
        resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
        assert (resumed.current_epoch, len(resumed._replayed)) == (1, 1)
        resumed.run_training()
        assert_same(weights(straight), weights(resumed))
        assert (
            straight.logger.local_logger.my_fantastic_logging["train_losses"]
            == resumed.logger.local_logger.my_fantastic_logging["train_losses"]
        )
