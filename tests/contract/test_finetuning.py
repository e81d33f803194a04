"""From a pre-training checkpoint to a network that segments, on both backbones."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run import load_pretrained_weights as nnunet_loading
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.trainers.data.corpus import seed_everything
from nnunet_ssl.trainers.finetuning import (
    SSLFinetuneFrozenTrainer,
    SSLFinetuneLayerDecayTrainer,
    SSLFinetunePolyTrainer,
    SSLFinetuneSawtoothTrainer,
    SSLFinetuneTrainer,
    SSLFinetuneValleyTrainer,
    SSLFinetuneWarmupTrainer,
    SSLScratchTrainer,
)
from nnunet_ssl.trainers.pretraining import SSLMAETrainer


@pytest.fixture
def pretrained(make_trainer, plans_for):
    """Function (backbone) -> path of a checkpoint after one epoch of pre-training."""

    def pretrain(backbone: str) -> Path:
        trainer = make_trainer(SSLMAETrainer, plans_for(backbone, {"num_epochs": 1, "warmup_epochs": 0}))
        trainer.run_training()
        return Path(trainer.output_folder) / "checkpoint_final.pth"

    return pretrain


def load(trainer, checkpoint: Path) -> None:
    """What nnU-Net does with -pretrained_weights."""
    trainer.initialize()
    nnunet_loading.load_pretrained_weights(trainer.network, str(checkpoint), verbose=True)


def stock_loading(network, checkpoint: Path) -> None:
    """nnU-Net's function as it is without the plugin."""
    wrapped = nnunet_loading.load_pretrained_weights
    getattr(wrapped, "__wrapped__", wrapped)(network, str(checkpoint), True)


def encoder_of(backbone: str) -> str:
    return "encoder." if backbone == "unet" else "eva."


def test_nnunets_own_function_loads_our_file(make_trainer, plans_for, pretrained):
    checkpoint = pretrained("unet")
    trainer = make_trainer(nnUNetTrainer, plans_for("unet"))
    trainer.initialize()
    stock_loading(trainer.network, checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["network_weights"]
    loaded = trainer.network.state_dict()
    assert all(torch.equal(loaded[k], saved[k]) for k in loaded if ".seg_layers." not in k)


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_finetuned_network_predicts_without_the_pretraining_file(backbone, make_trainer, plans_for, pretrained):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    checkpoint = pretrained(backbone)
    saved = torch.load(checkpoint, weights_only=True)["network_weights"]
    trainer = make_trainer(SSLFinetuneTrainer, plans_for(backbone, finetune={"num_epochs": 1, "warmup_epochs": 0}), 0)
    load(trainer, checkpoint)
    checkpoint.unlink()
    loaded = trainer.network.state_dict()
    prefix = encoder_of(backbone)
    assert all(torch.equal(loaded[k], saved[k]) for k in loaded if k.startswith(prefix))
    trainer.run_training()
    report = json.loads((Path(trainer.output_folder) / "pretrained_weights.json").read_text())
    assert report
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    image = np.random.default_rng(0).normal(size=(1, 20, 28, 20)).astype(np.float32)
    segmentation = predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}, None, None, False)
    assert segmentation.shape == (20, 28, 20)
    assert set(np.unique(segmentation)) <= {0, 1}


def test_decoder_is_transferred_only_on_request(make_trainer, plans_for, pretrained):
    checkpoint = pretrained("unet")
    saved = torch.load(checkpoint, weights_only=True)["network_weights"]
    key = "decoder.stages.0.convs.0.conv.weight"
    for transfer, expected in (("encoder", False), ("encoder+decoder", True)):
        trainer = make_trainer(SSLFinetuneTrainer, plans_for("unet", finetune={"transfer": transfer}))
        load(trainer, checkpoint)
        assert torch.equal(trainer.network.state_dict()[key], saved[key]) is expected


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_more_channels_and_another_patch(backbone, make_trainer, plans_for, pretrained):
    checkpoint = pretrained(backbone)
    plans = plans_for(backbone)
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(patch_size=[24, 16, 16], normalization_schemes=["ZScoreNormalization"] * 2)
    trainer = make_trainer(SSLFinetuneTrainer, plans)
    trainer.dataset_json = {**trainer.dataset_json, "channel_names": {"0": "T1", "1": "T2"}}
    load(trainer, checkpoint)
    with torch.no_grad():
        output = trainer.network(torch.randn(1, 2, 24, 16, 16))
    assert (output[0] if isinstance(output, (list, tuple)) else output).shape[:2] == (1, 2)


def test_wrong_starts_are_refused(make_trainer, plans_for, pretrained):
    without = make_trainer(SSLFinetuneTrainer, plans_for("unet"))
    with pytest.raises(RuntimeError, match="-tr SSLScratchTrainer"):
        without.run_training()
    twin = make_trainer(SSLScratchTrainer, plans_for("unet"))
    load(twin, pretrained("unet"))
    with pytest.raises(RuntimeError, match="-tr SSLFinetuneTrainer"):
        twin.run_training()


def test_weights_of_another_architecture_are_refused(make_trainer, plans_for, pretrained):
    trainer = make_trainer(SSLFinetuneTrainer, plans_for("primus"))
    with pytest.raises(CheckpointError):
        load(trainer, pretrained("unet"))


def test_pretraining_continues_from_pretrained_weights(make_trainer, plans_for, pretrained):
    checkpoint = pretrained("unet")
    saved = torch.load(checkpoint, weights_only=True)["network_weights"]
    trainer = make_trainer(SSLMAETrainer, plans_for("unet"))
    load(trainer, checkpoint)
    loaded = trainer.method.bare_network.state_dict()
    assert all(torch.equal(loaded[k], saved[k]) for k in loaded if ".seg_layers." not in k)


def test_scratch_twin_has_the_same_schedule_with_its_own_learning_rate(make_trainer, plans_for):
    plans = plans_for("unet")
    plans["configurations"]["3d_fullres"]["finetune"] = {"num_epochs": 150}
    tuned, scratch = (make_trainer(t, deepcopy(plans)) for t in (SSLFinetuneTrainer, SSLScratchTrainer))
    assert (
        (tuned.recipe.warmup_epochs, tuned.num_epochs)
        == (scratch.recipe.warmup_epochs, scratch.num_epochs)
        == (15, 150)
    )
    assert (tuned.initial_lr, scratch.initial_lr) == (1e-3, 1e-2)


def test_cases_without_label_are_not_background(make_trainer, plans_for, preprocessed_dataset):
    labels = preprocessed_dataset / "preprocessed" / "Dataset777_Tiny" / "gt_segmentations"
    labels.mkdir()
    for number in range(5):
        (labels / f"tiny_{number:03d}.nii.gz").touch()
    trainer = make_trainer(SSLFinetuneTrainer, plans_for("unet"))
    assert sorted(trainer.do_split()[0]) == [f"tiny_{n:03d}" for n in range(5)]
    for file in labels.iterdir():
        file.unlink()
    with pytest.raises(RuntimeError, match="0 labelled training"):
        trainer.do_split()


@pytest.fixture
def start(make_trainer, plans_for, tmp_path):
    """Function (backbone) -> path of a checkpoint with other weights than a new trainer has."""

    def write(backbone: str) -> Path:
        trainer = make_trainer(SSLScratchTrainer, plans_for(backbone, finetune={"seed": 1}))
        trainer.initialize()
        path = tmp_path / f"start_{backbone}.pth"
        torch.save({"network_weights": trainer.network.state_dict()}, path)
        return path

    return write


SHORT = {"num_epochs": 4, "decoder_epochs": 2, "warmup_epochs": 1, "num_iterations_per_epoch": 1}


@pytest.mark.parametrize(
    ("trainer_class", "backbone", "finished", "decoder_only"),
    [
        (SSLFinetuneTrainer, "unet", 1, 0),
        (SSLFinetuneWarmupTrainer, "primus", 1, 0),
        (SSLFinetunePolyTrainer, "unet", 2, 0),
        (SSLFinetuneValleyTrainer, "primus", 2, 2),
        (SSLFinetuneSawtoothTrainer, "unet", 1, 2),
        (SSLFinetuneSawtoothTrainer, "primus", 2, 2),
        (SSLFinetuneSawtoothTrainer, "unet", 3, 2),
        (SSLFinetuneFrozenTrainer, "unet", 2, 4),
        (SSLFinetuneLayerDecayTrainer, "primus", 1, 0),
    ],
)
def test_stopped_and_resumed_across_phases(
    trainer_class, backbone, finished, decoder_only, make_trainer, plans_for, start, tmp_path, monkeypatch
):
    checkpoint = start(backbone)
    encoder = {k: v for k, v in torch.load(checkpoint)["network_weights"].items() if k.startswith(encoder_of(backbone))}
    # nnU-Net's loader draws from the global generators; seeded per epoch, a resumed run sees what the first one saw.
    monkeypatch.setattr(trainer_class, "on_train_epoch_start", seeded(trainer_class.on_train_epoch_start))
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)  # takes longer than the epochs
    trainer = make_trainer(trainer_class, plans_for(backbone, finetune=SHORT))
    trainer.save_every = 1
    load(trainer, checkpoint)
    kept: list[Path] = []

    def keep() -> None:
        type(trainer).on_epoch_end(trainer)
        if trainer.current_epoch < 4:
            kept.append(tmp_path / f"after_{trainer.current_epoch}.pth")
            shutil.copy(Path(trainer.output_folder) / "checkpoint_latest.pth", kept[-1])

    trainer.on_epoch_end = keep
    trainer.run_training()
    for number, file in enumerate(kept, start=1):
        weights = torch.load(file, weights_only=False)["network_weights"]
        untouched = all(torch.equal(weights[k], v) for k, v in encoder.items())
        assert untouched is (number <= decoder_only), number
    assert trainer.logger.local_logger.my_fantastic_logging["lrs"] == [trainer.schedule.lr(e) for e in range(4)]
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert log.count("Phase: epoch") == len(trainer.schedule.phases)
    assert log.count("decoder only, the encoder is frozen") == 2 * sum(p.decoder_only for p in trainer.schedule.phases)

    resumed = make_trainer(trainer_class, plans_for(backbone, finetune=SHORT))
    resumed.load_checkpoint(str(kept[finished - 1]))
    assert resumed.current_epoch == finished
    resumed.run_training()
    expected, got = trainer.network.state_dict(), resumed.network.state_dict()
    assert [k for k in expected if not torch.equal(expected[k], got[k])] == []
    final = make_trainer(trainer_class, plans_for(backbone, finetune=SHORT))
    final.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    assert final.current_epoch == 4


def seeded(method):
    """A trainer's method that seeds the global generators by the epoch before it runs."""

    def run(self, *args):
        seed_everything(self.current_epoch)
        return method(self, *args)

    return run


@pytest.mark.parametrize(("channels", "trains"), [("repeat", False), ("random", True)])
def test_stem_trains_with_the_decoder_only_where_it_is_fresh(channels, trains, make_trainer, plans_for, start):
    plans = plans_for("unet", finetune={"channels": channels, "decoder_lr": 2.5e-6})
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    trainer = make_trainer(SSLFinetuneFrozenTrainer, plans)
    trainer.dataset_json = {**trainer.dataset_json, "channel_names": {"0": "T1", "1": "T2"}}
    load(trainer, start("unet"))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert "Exact learning rate: 2.5e-06" in log  # nnU-Net's line says 0.0
    assert trainer.network.decoder.training
    assert not any(m.training for m in trainer.network.encoder.stages.modules())
    assert trainer.network.encoder.stem.convs[0].conv.training is trains
    assert all(p.requires_grad is trains for p in trainer.network.encoder.stem.parameters())
    assert not any(p.requires_grad for p in trainer.network.encoder.stages.parameters())
    trainer.train_step({"data": torch.randn(2, 2, 16, 24, 16), "target": targets(trainer)})
    assert all((p.grad is not None) is trains for p in trainer.network.encoder.stem.parameters())


def targets(trainer):
    """An empty segmentation, or with deep supervision one at every resolution."""
    if not trainer.enable_deep_supervision:
        return torch.zeros(2, 1, 16, 24, 16)
    scales = [(1, 1, 1), *trainer._get_deep_supervision_scales()[1:]]
    return [torch.zeros(2, 1, *(round(n * f) for n, f in zip((16, 24, 16), s, strict=True))) for s in scales]


def test_fine_tuning_is_as_published_and_can_be_as_nnunet_trains(make_trainer, plans_for, start):
    """Without deep supervision, whose outputs then wait for no gradient; Primus without stochastic depth."""
    for wanted in (False, True):
        trainer = make_trainer(SSLFinetuneTrainer, plans_for("unet", finetune={"deep_supervision": wanted}))
        load(trainer, start("unet"))
        assert trainer.enable_deep_supervision is wanted
        coarse = trainer.network.decoder.seg_layers[:-1].parameters()
        assert all(parameter.requires_grad is wanted for parameter in coarse)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        trainer.train_step({"data": torch.randn(2, 1, 16, 24, 16), "target": targets(trainer)})
        waiting = [n for n, p in trainer.network.named_parameters() if p.requires_grad and p.grad is None]
        if not wanted:  # nnU-Net sees to it itself
            assert waiting == [], "DDP would wait for what nothing asks for"
    for rate in (0.0, 0.2):
        plans = plans_for("primus", finetune={"drop_path": rate})
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["drop_path_rate"] = 0.1
        trainer = make_trainer(SSLScratchTrainer, plans)
        trainer.initialize()
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in trainer.network.eva.blocks]
        assert rates == pytest.approx([rate * n / (len(rates) - 1) for n in range(len(rates))])


def test_patches_of_a_primus_are_products_of_the_same_value(make_trainer, plans_for):
    """On a volume of one token too, where some CPUs read what nobody wrote when these are convolutions."""
    plans = plans_for("primus")
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 8]
    trainer = make_trainer(SSLScratchTrainer, plans)
    trainer.initialize()
    network = trainer.network
    plain = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 2, False)
    plain.load_state_dict(network.state_dict())
    embed, decoder = network.down_projection.proj, network.up_projection
    assert "forward" in embed.__dict__
    assert "forward" in decoder.__dict__
    image, feature_map = torch.randn(2, 1, 16, 24, 8), torch.randn(2, 72, 2, 3, 1)
    for one, other, x in ((embed, plain.down_projection.proj, image), (decoder, plain.up_projection, feature_map)):
        torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)
    network.eval()
    plain.eval()
    found, expected = network(image), plain(image)
    scale = expected.abs().max().item()  # the whole network computes in bfloat16 where the CPU has it
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * scale)


def test_frozen_encoder_needs_a_checkpoint_too(make_trainer, plans_for):
    with pytest.raises(RuntimeError, match="SSLFinetuneFrozenTrainer starts from pre-trained weights"):
        make_trainer(SSLFinetuneFrozenTrainer, plans_for("unet")).run_training()
