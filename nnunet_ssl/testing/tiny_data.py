"""A preprocessed data set of a few tiny volumes, and plans with tiny networks for it: a training takes seconds on a CPU."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scipy.ndimage import gaussian_filter

DATASET = "Dataset777_Tiny"
PATCH = (16, 24, 16)
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "structure": 1},
    "numTraining": 8,
    "file_ending": ".nii.gz",
}
ARCHITECTURES = {
    "unet": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [6, 12, 24],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "n_blocks_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
    "primus": {
        "network_class_name": "dynamic_network_architectures.architectures.primus.Primus",
        "arch_kwargs": {
            "embed_dim": 72,
            "patch_embed_size": [8, 8, 8],
            "eva_depth": 2,
            "eva_numheads": 1,
            "input_shape": list(PATCH),
            "drop_path_rate": 0.2,
            "init_values": 0.1,
            "scale_attn_inner": True,
        },
        "_kw_requires_import": [],
    },
}


def tiny_plans(
    backbone: str, ssl: dict[str, Any] | None = None, finetune: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Plans of the tiny data set; every epoch takes three iterations."""
    short = {"num_epochs": 4, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 2, "warmup_epochs": 1}
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": DATASET,
        "plans_name": f"tinyPlans_{backbone}",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [20, 28, 20],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": {
                "data_identifier": "tiny_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(PATCH),
                "median_image_size_in_voxels": [20.0, 28.0, 20.0],
                "spacing": [1.0, 1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": deepcopy(ARCHITECTURES[backbone]),
                "batch_dice": False,
                "ssl": {"optimizer": "adamw", "initial_lr": 2e-3, "save_every": 1, **short, **(ssl or {})},
                "finetune": {"optimizer": "adamw", "initial_lr": 2e-3, **short, **(finetune or {})},
            }
        },
        "experiment_planner_used": "SSLPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0, "median": 0, "std": 1, "min": -3, "max": 3, "percentile_99_5": 3, "percentile_00_5": -3}
        },
    }


def write_cases(folder: Path, labelled: bool = True) -> None:
    """Eight smooth volumes with a bright structure, as nnU-Net's preprocessing leaves them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        image = gaussian_filter(rng.normal(size=(20, 28, 20)), 3)
        seg = (image > np.quantile(image, 0.9)).astype(np.int16)[None]
        image = (image - image.mean()) / image.std() + 0.1 * rng.normal(size=image.shape)
        locations = {1: np.argwhere(seg == 1)} if labelled else {}
        nnUNetDatasetBlosc2.save_case(
            image.astype(np.float32)[None],
            seg if labelled else np.zeros_like(seg),
            {"spacing": [1, 1, 1], "class_locations": locations},
            str(folder / f"tiny_{number:03d}"),
            chunks=(1, 20, 28, 20),
            blocks=(1, 20, 28, 20),
        )


def write_dataset(folder: Path) -> dict[str, str]:
    """nnU-Net's three folders in `folder` with the tiny data set preprocessed; returns the variables that name them."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True)
    base = folder / "preprocessed" / DATASET
    write_cases(base / "tiny_3d_fullres")
    (base / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (base / "dataset_fingerprint.json").write_text("{}")
    variables = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    return {**variables, "nnUNet_n_proc_DA": "0"}  # batches are read in the training process
