"""What every pretext task owes its users, on every backbone it works on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.checkpoints.export.formats import export_nnssl
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.integration.pretrained_weights import load_into
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer
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


@pytest.fixture
def uninterrupted(make_trainer, plans_for, tmp_path_factory):
    """Function (method, backbone, epochs) -> finished trainer of a run nobody disturbed; made once, runs repeat."""

    def run(method: str, backbone: str, epochs: int):
        key = (method, backbone, epochs)
        if key not in FINISHED:
            trainer = make_trainer(trainer_class(method), plans_for(backbone, {"num_epochs": epochs}))
            trainer.output_folder = str(tmp_path_factory.mktemp("uninterrupted"))
            trainer.log_file = f"{trainer.output_folder}/training_log.txt"
            trainer.run_training()
            trainer.perform_actual_validation()
            FINISHED[key] = trainer
        return FINISHED[key]

    return run


FINISHED: dict[tuple[str, str, int], object] = {}


def losses(trainer) -> list[list[float]]:
    logging = trainer.logger.local_logger.my_fantastic_logging
    return [logging["train_losses"], logging["val_losses"]]


def resume(trainer):
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    return trainer


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
class TestMethod:
    """One class for all methods; nothing in it knows any of them."""

    def test_leaves_everything_behind(self, method, backbone, uninterrupted):
        trainer = uninterrupted(method, backbone, 2)
        folder = Path(trainer.output_folder)
        for name in ("checkpoint_final.pth", "progress.png", "previews/epoch_0002.png", "validation/summary.json"):
            assert (folder / name).is_file(), name
        assert len(list((folder / "validation").glob("*.png"))) >= 1
        log = (folder / "training_log.txt").read_text()
        assert "Epoch 1/2: training loss " in log
        assert log.count("held out to watch the loss") == 1

    def test_checkpoint_is_plain_data_and_holds_the_bare_network(self, method, backbone, uninterrupted):
        trainer = uninterrupted(method, backbone, 2)
        checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
        bare = type(trainer).build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, trainer.method.backbone.out_channels, False
        )
        assert set(bare.state_dict()) == set(checkpoint["network_weights"])
        assert checkpoint["ssl"]["method"] == method
        assert checkpoint["ssl"]["heads"].keys() == trainer.method.heads().keys()
        assert checkpoint["nnssl_adaptation_plan"]["pretrain_num_input_channels"] == 1

    def test_stopped_and_resumed_is_uninterrupted(self, method, backbone, uninterrupted, make_trainer, plans_for):
        """SIGTERM in the middle of the second epoch: the results are those of the run nobody disturbed, bit by bit on a CPU."""
        plans = plans_for(backbone, {"num_epochs": 2})
        stopped = make_trainer(trainer_class(method), plans)
        original = stopped.train_step

        def train_step(batch):
            if stopped.current_epoch == 1 and stopped.position.iteration == 1:
                signal.raise_signal(signal.SIGTERM)
            return original(batch)

        stopped.train_step = train_step
        with pytest.raises(SystemExit) as exit_code:
            stopped.run_training()
        assert exit_code.value.code == 128 + signal.SIGTERM
        resumed = resume(make_trainer(trainer_class(method), plans))
        assert (resumed.current_epoch, len(resumed.position.replayed)) == (1, 1)
        resumed.run_training()
        straight = uninterrupted(method, backbone, 2)
        assert_same(weights(straight), weights(resumed))
        assert losses(straight) == losses(resumed)

    def test_exported_it_loads_into_the_stock_trainer(
        self, method, backbone, uninterrupted, make_trainer, plans_for, tmp_path
    ):
        """nnU-Net's own trainer (U-Nets) or a network of the plans (Primus) takes the file we give away, as it is."""
        checkpoint = read_checkpoint(Path(uninterrupted(method, backbone, 2).output_folder) / "checkpoint_final.pth")
        export_nnssl(checkpoint, tmp_path / "exported")
        file = tmp_path / "exported" / "checkpoint_final.pth"
        saved = read_checkpoint(file)["network_weights"]
        assert_same(checkpoint["network_weights"], saved)
        trainer = make_trainer(nnUNetTrainer if backbone == "unet" else SSLFinetuneTrainer, plans_for(backbone), 0)
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(file))
        loaded = trainer.network.state_dict()
        encoder = [k for k in loaded if k.startswith(("encoder.", "eva.blocks.", "down_projection."))]
        assert encoder
        assert_same({k: saved[k] for k in encoder}, {k: loaded[k] for k in encoder})

    def test_finetunes_and_predicts(self, method, backbone, uninterrupted, make_trainer, plans_for):
        """One epoch of fine-tuning from the checkpoint, then a prediction from the model folder alone."""
        checkpoint = str(Path(uninterrupted(method, backbone, 2).output_folder) / "checkpoint_final.pth")
        plans = plans_for(backbone, finetune={"num_epochs": 1, "warmup_epochs": 0})
        trainer = make_trainer(SSLFinetuneTrainer, plans, 0)
        trainer.initialize()
        report = load_into(trainer.network, checkpoint)
        encoder = report.groups["encoder"]
        assert encoder.loaded > 0
        assert encoder.fresh == 0
        trainer.run_training()
        predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
        image = torch.randn(1, 20, 28, 20, generator=torch.Generator().manual_seed(0)).numpy()
        segmentation = predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}, None, None, False)
        assert segmentation.shape == (20, 28, 20)


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_two_and_two_epochs_are_four(backbone, uninterrupted, make_trainer, plans_for):
    run_until(make_trainer(trainer_class("mae"), plans_for(backbone)), epoch=2)
    resumed = resume(make_trainer(trainer_class("mae"), plans_for(backbone)))
    assert resumed.current_epoch == 2
    resumed.run_training()
    straight = uninterrupted("mae", backbone, 4)
    assert_same(weights(straight), weights(resumed))
    assert losses(straight) == losses(resumed)
