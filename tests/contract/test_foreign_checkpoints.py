"""nnssl's checkpoints, one of each kind: fine-tuned for one epoch, and predicted with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run import load_pretrained_weights as nnunet_loading

from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures"
TRAINERS = (
    "BaseMAETrainer",
    "SparkMAETrainer",
    "VoCoTrainer",
    "VolumeFusionTrainer",
    "BaseEvaMAETrainer",
    "SimMIMEvaTrainer",
    "SwinUNETREvaTrainer",
)
PATCH = [64, 32, 32]  # five halvings leave more than one position to normalise over

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"nnssl checkpoints are not in {FIXTURES}")


def put_architecture(configuration: dict[str, Any], primus: bool) -> None:
    """The small networks of the checkpoints, in a configuration whose architecture is of the right kind."""
    configuration["patch_size"] = PATCH
    arguments = configuration["architecture"]["arch_kwargs"]
    if primus:
        arguments.update(embed_dim=72, eva_depth=2, eva_numheads=1, patch_embed_size=[8] * 3, input_shape=PATCH)
        return
    arguments.update(
        n_stages=6,
        features_per_stage=[8, 16, 16, 16, 32, 32],
        kernel_sizes=[[3] * 3] * 6,
        strides=[[1] * 3] + [[2] * 3] * 5,
        n_blocks_per_stage=[1] * 6,
        n_conv_per_stage_decoder=[1] * 5,
    )


@pytest.mark.parametrize("source", TRAINERS)
def test_finetuned_for_an_epoch_and_predicted_with(source, make_trainer, plans_for):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    short = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "warmup_epochs": 0}
    plans = plans_for("primus" if "Eva" in source else "unet", finetune=short)
    put_architecture(plans["configurations"]["3d_fullres"], "Eva" in source)
    trainer = make_trainer(SSLFinetuneTrainer, plans, 0)
    trainer.initialize()
    file = FIXTURES / source / "checkpoint_tiny.pth"
    nnunet_loading.load_pretrained_weights(trainer.network, str(file), verbose=True)
    trainer.run_training()
    report = json.loads((Path(trainer.output_folder) / "pretrained_weights.json").read_text())
    assert report["encoder_fraction"] == 1.0
    assert len(report["source_info"]["origin"]["sha256"]) == 64
    assert report["source_info"]["origin"]["path"] == str(file)
    swapped = "Eva" in source and "SimMIM" not in source
    assert any("token order" in note for note in report["notes"]) is swapped
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    image = np.random.default_rng(0).normal(size=(1, 20, 28, 20)).astype(np.float32)
    segmentation = predictor.predict_single_npy_array(image, {"spacing": [1, 1, 1]}, None, None, False)
    assert segmentation.shape == (20, 28, 20)
