"""Fine-tuning for segmentation, and its twin from scratch: nnU-Net's training with another start and schedule."""

from __future__ import annotations

import json
import os
from os.path import isdir, isfile, join
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ssl.checkpoints.options import TransferOptions
from nnunet_ssl.integration.architecture import build_network, is_primus
from nnunet_ssl.integration.pretrained_weights import unwrap
from nnunet_ssl.recipes import FINETUNING, SCRATCH, Recipe, WarmupPolyLR, build_optimizer, resolve
from nnunet_ssl.settings import FinetuneSettings, read_config
from nnunet_ssl.trainers.data import derive_seed, seed_everything
from nnunet_ssl.trainers.devices import require_device
from nnunet_ssl.trainers.precision import run_in_autocast


class SSLFinetuneTrainer(nnUNetTrainer):
    """nnU-Net's training from pre-trained weights: linear warm-up, then polynomial decay, small learning rate.

    Works with every plans file, Primus' included. Settings come from the plans' `finetune` block. The network is built
    from the plans alone, so prediction needs nothing of the pre-training.
    """

    recipes: ClassVar[dict[str, Recipe]] = FINETUNING

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net reads this exact signature
    ) -> None:
        require_device(device)
        super().__init__(plans, configuration, fold, dataset_json, device)
        block = self.configuration_manager.configuration.get("finetune", {})
        where = f'plans["configurations"]["{configuration}"]["finetune"]'
        self.settings = read_config(FinetuneSettings, block, where)
        primus = is_primus(self.configuration_manager)
        self.recipe = resolve(self.recipes, "primus" if primus else "unet", self.settings)
        self.num_epochs, self.initial_lr = self.recipe.num_epochs, self.recipe.initial_lr
        self.weight_decay = self.recipe.weight_decay
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.num_val_iterations_per_epoch
        self.enable_deep_supervision = not primus

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network of the plans; everything is read from them, so inference needs no other file."""
        return build_network(configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision)

    def initialize(self) -> None:
        """Build everything as nnU-Net does, from a fixed seed, and say how weights are to be transferred."""
        seed_everything(derive_seed(self.settings.seed))
        super().initialize()
        network = unwrap(self.network)
        network.nnunet_ssl_transfer = TransferOptions(
            transfer=self.settings.transfer,
            channels=self.settings.channels,
            target_patch_size=tuple(self.configuration_manager.patch_size),
        )
        run_in_autocast(network, self.device)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLR]:
        """Optimiser and schedule of the recipe, with its gradient clipping on top of nnU-Net's fixed 12."""
        optimizer = build_optimizer(self.network.parameters(), self.recipe)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.grad_clip)

        if self.recipe.grad_clip < 12:
            optimizer.register_step_pre_hook(clip)
        return optimizer, WarmupPolyLR(optimizer, self.recipe)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch deep supervision where the network knows it; Primus does not."""
        if not is_primus(self.configuration_manager):
            super().set_deep_supervision_enabled(enabled)

    def _check_start(self, report: Any) -> None:
        """Raise RuntimeError when a fresh fine-tuning has no pre-trained weights."""
        if report is None:
            raise RuntimeError(
                "SSLFinetuneTrainer starts from pre-trained weights and was given none. Add -pretrained_weights "
                "<checkpoint>, or train the twin from scratch with -tr SSLScratchTrainer."
            )

    def on_train_start(self) -> None:
        """Check the start, and write down beside the log what was transferred."""
        if not self.was_initialized:
            self.initialize()
        if self.current_epoch == 0:
            report = getattr(unwrap(self.network), "nnunet_ssl_transfer_report", None)
            self._check_start(report)
            if report is not None and self.local_rank == 0:
                with open(join(self.output_folder, "pretrained_weights.json"), "w") as file:
                    json.dump(report.to_json(), file, indent=2)
                self.print_to_log_file(f"Pre-trained weights:\n{report.table()}", add_timestamp=False)
        super().on_train_start()
        self.print_to_log_file(f"Schedule: {self.recipe}")

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, without the cases that have no label: they would count as pure background."""
        training, validation = super().do_split()
        labels = join(self.preprocessed_dataset_folder_base, "gt_segmentations")
        if not isdir(labels):
            return training, validation
        ending = self.dataset_json["file_ending"]
        known = {f.removesuffix(ending) for f in os.listdir(labels)}
        split = [c for c in training if c in known], [c for c in validation if c in known]
        left_out = len({*training, *validation} - known)
        if left_out:
            self.print_to_log_file(f"{left_out} cases have no label in {labels} and are left out of the training.")
        if not all(split):
            raise RuntimeError(
                f"Fold {self.fold} has {len(split[0])} labelled training and {len(split[1])} validation cases; both are "
                f"needed. Add labels to labelsTr and preprocess again, or use another fold."
            )
        return split

    def save_checkpoint(self, filename: str) -> None:
        """Save as nnU-Net does, but never leave half a file behind."""
        partial = f"{filename}.partial"
        try:
            super().save_checkpoint(partial)
            if isfile(partial):
                os.replace(partial, filename)
        finally:
            if isfile(partial):
                os.remove(partial)


class SSLScratchTrainer(SSLFinetuneTrainer):
    """The twin of `SSLFinetuneTrainer` from random weights: same network, data and schedule.

    Its default learning rate is the one that suits random weights, ten (U-Nets) or three (Primus) times the
    fine-tuning one; an `initial_lr` in the `finetune` block holds for both.
    """

    recipes = SCRATCH

    def _check_start(self, report: Any) -> None:
        """Raise RuntimeError when there are pre-trained weights after all."""
        if report is not None:
            raise RuntimeError(
                "SSLScratchTrainer trains from random weights. Leave out -pretrained_weights, or use "
                "-tr SSLFinetuneTrainer to fine-tune."
            )
