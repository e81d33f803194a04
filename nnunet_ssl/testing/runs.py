"""Trainings of every task: what they leave behind, that they resume, that their weights serve others."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.checkpoints.export.formats import export_nnssl
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.integration.pretrained_weights import load_into
from nnunet_ssl.methods import get_method
from nnunet_ssl.testing.tiny_training import TinyTraining, assert_same, losses, prepare_tiny_training, weights
from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer


class RunContract:
    """What every task owes its users in a training, on every backbone it works on. Nothing in here knows any of them."""

    settings: Mapping[str, Mapping[str, Any]] = {}  # by task: fields of its Config that are not the defaults

    @pytest.fixture
    def tiny(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyTraining]:
        """The tiny data set."""
        with prepare_tiny_training(tmp_path, tmp_path_factory) as tiny:
            yield tiny

    @pytest.fixture
    def own(self, method: str) -> dict[str, Any]:
        """Settings of the task under test."""
        return dict(self.settings.get(method, {}))

    def test_leaves_everything_behind(self, method: str, backbone: str, own: Any, tiny: TinyTraining) -> None:
        """Checkpoint, curves, previews, validation, and a log that names the terms of the loss."""
        folder = Path(tiny.finished(method, backbone, 2, own).output_folder)
        for name in (
            "checkpoint_final.pth",
            "progress.png",
            "report.html",
            "previews/epoch_0002.png",
            "validation/summary.json",
        ):
            assert (folder / name).is_file(), name
        assert len(list((folder / "validation").glob("*.png"))) >= 1
        log = (folder / "training_log.txt").read_text()
        assert "Epoch 1/2: training loss " in log
        assert log.count("held out to watch the loss") == 1

    def test_checkpoint_is_plain_data_and_holds_the_bare_network(
        self, method: str, backbone: str, own: Any, tiny: TinyTraining
    ) -> None:
        """torch opens it with weights_only; network and heads lie apart."""
        trainer = tiny.finished(method, backbone, 2, own)
        checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
        bare = type(trainer).build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, trainer.method.backbone.out_channels, False
        )
        assert set(bare.state_dict()) == set(checkpoint["network_weights"])
        assert checkpoint["ssl"]["method"] == method
        assert checkpoint["ssl"]["heads"].keys() == trainer.method.heads().keys()
        assert checkpoint["nnssl_adaptation_plan"]["pretrain_num_input_channels"] == 1

    def test_stopped_and_resumed_is_uninterrupted(
        self, method: str, backbone: str, own: Any, tiny: TinyTraining
    ) -> None:
        """SIGTERM in the middle of the second epoch: the results are those of the run nobody disturbed, bit by bit on a CPU."""
        plans = tiny.plans(backbone, {"num_epochs": 2, method: own})
        stopped = tiny.trainer(method, plans)
        original = stopped.train_step

        def train_step(batch: Any) -> Any:
            if stopped.current_epoch == 1 and stopped.position.iteration == 1:
                signal.raise_signal(signal.SIGTERM)
            return original(batch)

        stopped.train_step = train_step
        with pytest.raises(SystemExit) as exit_code:
            stopped.run_training()
        assert exit_code.value.code == 128 + signal.SIGTERM
        resumed = tiny.resumed(tiny.trainer(method, plans))
        assert (resumed.current_epoch, len(resumed.position.replayed)) == (1, 1)
        resumed.run_training()
        straight = tiny.finished(method, backbone, 2, own)
        assert_same(weights(straight), weights(resumed))
        assert losses(straight) == losses(resumed)

    def test_exported_it_loads_into_the_stock_trainer(
        self, method: str, backbone: str, own: Any, tiny: TinyTraining, tmp_path: Path
    ) -> None:
        """nnU-Net's own trainer (U-Nets) or a network of the plans (Primus) takes the file we give away, as it is."""
        checkpoint = read_checkpoint(
            Path(tiny.finished(method, backbone, 2, own).output_folder) / "checkpoint_final.pth"
        )
        export_nnssl(checkpoint, tmp_path / "exported")
        file = tmp_path / "exported" / "checkpoint_final.pth"
        saved = read_checkpoint(file)["network_weights"]
        assert_same(checkpoint["network_weights"], saved)
        trainer = tiny.trainer(nnUNetTrainer if backbone == "unet" else SSLFinetuneTrainer, tiny.plans(backbone), 0)
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(file))
        loaded = trainer.network.state_dict()
        encoder = [k for k in loaded if k.startswith(("encoder.", "eva.blocks.", "down_projection."))]
        assert encoder
        assert_same({k: saved[k] for k in encoder}, {k: loaded[k] for k in encoder})

    def test_finetunes_and_predicts(self, method: str, backbone: str, own: Any, tiny: TinyTraining) -> None:
        """One epoch of fine-tuning from the checkpoint, then a prediction from the model folder alone."""
        checkpoint = str(Path(tiny.finished(method, backbone, 2, own).output_folder) / "checkpoint_final.pth")
        trainer = tiny.trainer(
            SSLFinetuneTrainer, tiny.plans(backbone, finetune={"num_epochs": 1, "warmup_epochs": 0}), 0
        )
        trainer.initialize()
        encoder = load_into(trainer.network, checkpoint).groups["encoder"]
        assert encoder.loaded > 0
        assert encoder.fresh == 0
        trainer.run_training()
        predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
        image = torch.randn(1, 20, 28, 20, generator=torch.Generator().manual_seed(0)).numpy()
        segmentation = predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}, None, None, False)
        assert segmentation.shape == (20, 28, 20)


def runs_of(*methods: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> type[RunContract]:
    """`RunContract` for these tasks, on every backbone each of them works on; see `contract_of`."""
    pairs = [(method, backbone) for method in methods for backbone in get_method(method).backbones]
    cls = type("Runs", (RunContract,), {"settings": dict(settings or {})})
    return pytest.mark.parametrize(("method", "backbone"), pairs)(cls)
