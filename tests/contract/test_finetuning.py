"""From a pre-training checkpoint to a network that segments, on both backbones."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run import load_pretrained_weights as nnunet_loading
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.checkpoints.read import CheckpointError
from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer, SSLScratchTrainer
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
