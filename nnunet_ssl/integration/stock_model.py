"""What stock nnU-Net can build and name, for models that are to predict where this package is not installed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from os.path import join
from typing import Any

import nnunetv2
import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ssl.checkpoints.adaptation_plan import PRIMUS_PRESETS
from nnunet_ssl.checkpoints.export.private import Scrubber
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.architecture import is_primus, spec_of

OUR_BLOCKS = ("ssl", "finetune")
EQUIVALENT = {"SSLPreprocessor": "DefaultPreprocessor"}  # the same for prediction, see its docstring
# What else of stock nnU-Net the plans name: entry of a configuration -> folder of nnU-Net that has it.
NAMED = {
    "preprocessor_name": "preprocessing",
    "normalization_schemes": "preprocessing.normalization",
    "resampling_fn_data": "preprocessing.resampling",
    "resampling_fn_seg": "preprocessing.resampling",
    "resampling_fn_probabilities": "preprocessing.resampling",
}
# What a stock Primus trainer fixes; the rest of a Primus' arguments matters for training only.
PRIMUS_FIXED = {"patch_embed_size": [8, 8, 8], "scale_attn_inner": True}
PRIMUS_TRAINING = ("drop_path_rate", "init_values", "input_shape", "embed_dim", "eva_depth", "eva_numheads")


def stock_trainer(plans: Mapping[str, Any], configuration: str) -> str:
    """The trainer of stock nnU-Net that builds the network of a configuration.

    U-Nets: nnUNetTrainer. It passes deep_supervision to every network, which Primus refuses, so a Primus needs one of
    nnU-Net's own Primus trainers, which exist for the sizes S, B, M and L with tokens of 8 x 8 x 8 voxels. Raises
    CheckpointError for other networks.
    """
    manager = PlansManager(deepcopy(dict(plans))).get_configuration(configuration)
    if not is_primus(manager):
        if not manager.network_arch_class_name.startswith("dynamic_network_architectures."):
            raise CheckpointError(
                f"The network {manager.network_arch_class_name} does not come with nnU-Net, so stock nnU-Net cannot build it."
            )
        return nnUNetTrainer.__name__
    kwargs = manager.network_arch_init_kwargs
    size = PRIMUS_PRESETS.get((kwargs["embed_dim"], kwargs["eva_depth"], kwargs["eva_numheads"]))
    fixed = {key: list(v) if isinstance(v, tuple) else v for key, v in kwargs.items() if key not in PRIMUS_TRAINING}
    plain = manager.network_arch_class_name.endswith(".Primus") and kwargs.get("init_values") is not None
    if size is None or fixed != PRIMUS_FIXED or not plain:
        found = f"width {kwargs['embed_dim']}, depth {kwargs['eva_depth']}, {kwargs['eva_numheads']} heads"
        raise CheckpointError(
            f"Stock nnU-Net has no trainer that builds this Primus ({found}): nnUNetTrainer cannot build any, because it "
            "passes them deep_supervision, which they do not know, and its Primus trainers build the sizes S, B, M and L "
            "with tokens of 8 x 8 x 8 voxels only. Give the model folder away as it is and ask for `pip install "
            "nnunet_ssl`, with which nnUNetv2_predict works; or fine-tune a U-Net or the network of SSLPlannerPrimusM."
        )
    return f"nnUNet_{size.replace('Primus', 'Primus_')}_Trainer"


def stock_plans(plans: Mapping[str, Any], scrub: Scrubber) -> dict[str, Any]:
    """The plans with nothing in them that stock nnU-Net does not know.

    Our blocks go, our preprocessor becomes nnU-Net's. Raises CheckpointError naming whatever else is not nnU-Net's, and for
    networks that are not on the list of nnunet_ssl/checkpoints/networks: before anything is built from these plans.
    """
    clean: dict[str, Any] = scrub(plans, "plans")
    manager = PlansManager(deepcopy(clean))
    for name, configuration in clean["configurations"].items():
        spec_of(manager.get_configuration(name).configuration, f"{name} of the plans")
        for block in OUR_BLOCKS:
            if configuration.pop(block, None) is not None:
                scrub.removed.append(f'plans["configurations"]["{name}"]["{block}"]')
        own = configuration.get("preprocessor_name")
        if own is not None:
            configuration["preprocessor_name"] = EQUIVALENT.get(own, own)
        for entry, folder in NAMED.items():
            value = configuration.get(entry, [])
            for wanted in [value] if isinstance(value, str) else value:
                _require_stock(wanted, folder, f'{entry} of "{name}"')
    return clean


def _require_stock(name: str, folder: str, what: str) -> None:
    find = find_class_by_name.recursive_find_python_class
    stock = inspect.unwrap(find)  # without the plugins' classes
    if stock(join(nnunetv2.__path__[0], *folder.split(".")), name, f"nnunetv2.{folder}") is None:
        raise CheckpointError(
            f"{name} ({what} in the plans) does not come with nnU-Net, so stock nnU-Net could not predict with this model. "
            "Give it away together with the package that brings it."
        )


def check_same_network(
    checkpoint: Mapping[str, Any],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    stock_name: str,
) -> None:
    """Raise CheckpointError unless a stock trainer builds from the plans what the checkpoint's own trainer builds."""

    def build(name: str) -> nn.Module:
        plans_manager = PlansManager(deepcopy(dict(plans)))  # some trainers change the plans they are given
        manager = plans_manager.get_configuration(configuration)
        channels = determine_num_input_channels(plans_manager, manager, dataset_json)
        classes = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        trainer = recursive_find_trainer_class_by_name(name)
        with torch.device("meta"):
            return trainer.build_network_architecture(
                plans_manager, manager, channels, classes, enable_deep_supervision=False
            )

    own_name = str(checkpoint["trainer_name"])
    own, stock = build(own_name), build(stock_name)
    if _essence(own) != _essence(stock):
        raise CheckpointError(
            f"{own_name} builds a network of its own, not that of the plans, so stock nnU-Net could not build it. Give the "
            "model folder away together with the package of the trainer."
        )
    try:
        stock.load_state_dict(checkpoint["network_weights"], assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights are not those of the network in the plans: {str(error)[:600]} Is plans.json the one of this model?"
        ) from error


def _essence(network: nn.Module) -> str:
    """What a network computes at prediction, as text: stochastic depth acts in training only."""
    heads = [block.attn.num_heads for block in network.eva.blocks] if isinstance(network, Primus) else []
    return "\n".join([line for line in repr(network).splitlines() if "(drop_path" not in line] + [str(heads)])
