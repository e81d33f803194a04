"""Fine-tuning for segmentation, one trainer per schedule, and the twin from scratch: nnU-Net's training otherwise."""

from __future__ import annotations

import gc
import os
from os.path import basename, dirname, isdir, isfile, join
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssl.backbones.blockwise import compute_by_product
from nnunet_ssl.backbones.drop_path import set_drop_path
from nnunet_ssl.checkpoints.adaptation.options import TransferOptions
from nnunet_ssl.checkpoints.description.stated import channels_of_dataset
from nnunet_ssl.checkpoints.read import read_latest
from nnunet_ssl.corpus.splits import FILE as SPLITS
from nnunet_ssl.corpus.splits import enough_for_folds, require_splits
from nnunet_ssl.errors import CannotWrite, CheckpointError, CorpusError
from nnunet_ssl.files.atomic import atomic_path, write_json
from nnunet_ssl.finetune.phases import Phases
from nnunet_ssl.finetune.schedules import Phase, make_schedule
from nnunet_ssl.integration.architecture import build_network, is_primus
from nnunet_ssl.integration.logger import attach_loggers, finish_loggers
from nnunet_ssl.integration.opening import Opened
from nnunet_ssl.integration.pretrained_weights import unwrap
from nnunet_ssl.integration.versions import is_first
from nnunet_ssl.integration.writing import begin_run, let_pictures_fail, whole_files, without_files
from nnunet_ssl.recipes import FINETUNING, SCRATCH, Recipe, resolve
from nnunet_ssl.settings.blocks import FinetuneSettings, read_config
from nnunet_ssl.trainers.data.corpus import derive_seed, seed_everything
from nnunet_ssl.trainers.device.devices import keep_freed_memory, require_device
from nnunet_ssl.trainers.device.precision import run_in_autocast
from nnunet_ssl.trainers.loop.early_stop import Enough, sentence, stalled
from nnunet_ssl.trainers.loop.finite import Watch, require_finite, require_progress
from nnunet_ssl.trainers.loop.interruptible import InterruptibleTrainer
from nnunet_ssl.trainers.loop.iterations import Iterations
from nnunet_ssl.trainers.loop.log_lines import finetuning_summary

RESUME = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")  # nnU-Net's order


class SSLFinetuneTrainer(InterruptibleTrainer):
    """nnU-Net's training from pre-trained weights: linear warm-up, then polynomial decay, small learning rate.

    Works with every plans file, Primus' included. Settings come from the plans' `finetune` block. The network is built
    from the plans alone, so prediction needs nothing of the pre-training. Subclasses name another schedule.
    """

    recipes: ClassVar[dict[str, Recipe]] = FINETUNING
    schedule_name: ClassVar[str] = "warmup"
    network: nn.Module
    lr_scheduler: Phases

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net reads this exact signature
    ) -> None:
        begin_run(plans)
        require_device(device)
        keep_freed_memory(device)
        super().__init__(plans, configuration, fold, without_files(dataset_json), device)
        let_pictures_fail(self.logger, self.print_to_log_file)
        attach_loggers(self)
        block = self.configuration_manager.configuration.get("finetune", {})
        where = f'plans["configurations"]["{configuration}"]["finetune"]'
        self.settings = read_config(FinetuneSettings, block, where)
        primus = is_primus(self.configuration_manager)
        self.recipe = self.recipe_of(self.configuration_manager, self.settings)
        self.num_epochs, self.initial_lr = self.recipe.num_epochs, self.recipe.initial_lr
        self.weight_decay = self.recipe.weight_decay
        self.schedule = make_schedule(self.schedule_name, self.recipe, self.settings)
        self._announced: Phase | None = None  # the phase the log already tells of
        self.iterations = Iterations(self.settings.seed, self.is_ddp)
        self._resumed = False
        self.watch = Watch(self.print_to_log_file, self.grad_scaler is not None)
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.num_val_iterations_per_epoch
        self.save_every = self.settings.save_every
        self.enable_deep_supervision = self.settings.deep_supervision and not primus

    @classmethod
    def recipe_of(cls, configuration_manager: ConfigurationManager, settings: FinetuneSettings) -> Recipe:
        """Learning rate, length and the rest, as a training of this trainer on a configuration has them."""
        return resolve(cls.recipes, "primus" if is_primus(configuration_manager) else "unet", settings)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network of the plans; everything is read from them, so inference needs no other file."""
        network = build_network(configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision)
        if not enable_deep_supervision and not is_primus(configuration_manager):
            # Nothing asks for the coarser outputs, and DDP would wait for their gradients.
            outputs: Any = network.get_submodule("decoder.seg_layers")
            outputs[:-1].requires_grad_(False)
        return network

    def initialize(self) -> None:
        """Build everything as nnU-Net does, from a fixed seed, and say how weights are to be transferred."""
        seed_everything(derive_seed(self.settings.seed))
        super().initialize()
        network = unwrap(self.network)
        channels = channels_of_dataset(self.dataset_json.get("channel_names"))
        network.nnunet_ssl_transfer = TransferOptions(
            transfer=self.settings.transfer,
            channels=self.settings.channels,
            stem=self.settings.stem,
            target_patch_size=tuple(self.configuration_manager.patch_size),
            target_channel_names=tuple(channels or ()) or None,
            image_channels=len(self.dataset_json.get("channel_names") or self.dataset_json["modality"]),
        )
        if is_primus(self.configuration_manager):
            set_drop_path(network, self.settings.drop_path)
        compute_by_product(network)
        run_in_autocast(network, self.device)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Phases]:
        """Optimiser of the schedule's first phase, and the schedule in nnU-Net's scheduler's place."""
        phases = Phases(unwrap(self.network), self.recipe, self.schedule)
        return phases.optimizer, phases

    def _use_phase(self, trains_others: bool) -> None:
        """Take over the optimiser of the present phase, and tell DDP when other parameters train than before.

        DDP asks once, when it is built, which parameters want gradients: it would wait for those of an encoder frozen
        later, and not average those of one thawed later.
        """
        self.optimizer = self.lr_scheduler.optimizer
        if trains_others and isinstance(self.network, DistributedDataParallel):
            bare, device_ids = self.network.module, self.network.device_ids
            self.network = bare
            gc.collect()  # the old wrapper's hooks go with it
            self.network = DistributedDataParallel(bare, device_ids=device_ids)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch deep supervision where the network knows it; Primus does not."""
        if not is_primus(self.configuration_manager):
            super().set_deep_supervision_enabled(enabled)

    def _check_start(self, report: Any) -> None:
        """Raise CheckpointError when a fresh fine-tuning has no pre-trained weights."""
        if report is None:
            raise CheckpointError(
                f"{type(self).__name__} starts from pre-trained weights and was given none. Add -pretrained_weights "
                "<checkpoint>, or train the twin from scratch with -tr SSLScratchTrainer."
            )

    def on_train_start(self) -> None:
        """Check the start, and write down beside the log what was transferred."""
        if not self.was_initialized:
            self.initialize()
        if not self._resumed:
            report = getattr(unwrap(self.network), "nnunet_ssl_transfer_report", None)
            self._check_start(report)
            if report is not None and is_first():
                write_json(report.to_json(), join(self.output_folder, "pretrained_weights.json"))
                # The console has it already: `load` prints it.
                table = f"Pre-trained weights:\n{report.table()}"
                self.print_to_log_file(table, also_print_to_console=False, add_timestamp=False)
            self._use_phase(self.lr_scheduler.start_with([] if report is None else report.fresh_in_encoder()))
        with whole_files(self.print_to_log_file):
            super().on_train_start()
        self.print_to_log_file(f"{finetuning_summary(self, unwrap(self.network))}\n", add_timestamp=False)
        self.print_to_log_file(f"{self.schedule}")
        self._stop_when_stalled()

    def on_train_epoch_start(self) -> None:
        """Enter the epoch's phase, and say so where one begins or the training goes on."""
        self._use_phase(self.lr_scheduler.enter(self.current_epoch))
        super().on_train_epoch_start()
        self.iterations.begin(self.current_epoch)
        self.lr_scheduler.set_modes()
        phase = self.schedule.phase(self.current_epoch)
        if phase is not self._announced:
            self._announced = phase
            self.print_to_log_file(f"Phase: {self.lr_scheduler.phase_at(self.current_epoch)}")
        lr = self.optimizer.param_groups[0]["lr"]
        if abs(round(lr, 5) - lr) > 0.01 * lr:  # nnU-Net's line rounds to five decimals
            self.print_to_log_file(f"Exact learning rate: {lr:.4g}")

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load as nnU-Net does, into the optimiser of the phase in which the checkpoint was written.

        With --c, another one stands in for a damaged one, with a line in the log.
        """
        if not self.was_initialized:
            self.initialize()
        if isinstance(filename_or_checkpoint, dict):
            opened = Opened("the given checkpoint", filename_or_checkpoint)
        elif self.plans_manager.plans.get("continue_training"):
            names = (basename(filename_or_checkpoint), *(n for n in RESUME if n != basename(filename_or_checkpoint)))
            checkpoint, path, notes = read_latest(dirname(filename_or_checkpoint), names, mapped=False)
            for note in notes:
                self.print_to_log_file(f"WARNING: {note}")
            self.print_to_log_file(f"Continuing from {path}")
            opened = Opened(path, checkpoint)
        else:
            opened = Opened(filename_or_checkpoint)
        saved, self._resumed = opened.checkpoint, True
        self._use_phase(self.lr_scheduler.resume(saved["current_epoch"], saved["optimizer_state"]["param_groups"]))
        super().load_checkpoint(opened)
        self.iterations.take_from(self.logger.local_logger.my_fantastic_logging, self.current_epoch)

    def print_plans(self) -> None:
        """nnU-Net prints the whole plans, which lie beside the log; `finetuning_summary` says what matters."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs a package that no longer works."""

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, without the cases that have no label: they would count as pure background."""
        require_splits(join(self.preprocessed_dataset_folder_base, SPLITS))
        with enough_for_folds():
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
            raise CorpusError(
                f"Fold {self.fold} has {len(split[0])} labelled training and {len(split[1])} validation cases; both are "
                f"needed. Add labels to labelsTr and preprocess again, or use another fold."
            )
        return split

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step; what is left out of the training, because it is not finite, is said at once.

        Not taken again are steps that were before the checkpoint with which this run goes on.
        """
        before = self.iterations.finished_before()
        if before is not None:
            self._stop_if_asked()
            self.iterations.note(float(before["loss"]))
            return before
        # A GradScaler may leave out the optimiser, and with it what looks at the gradients.
        self.lr_scheduler.fine = torch.tensor(False)
        result = super().train_step(batch)
        # Nothing is left to wait for: nnU-Net has asked the device for the loss.
        loss, fine = torch.as_tensor(result["loss"]), self.lr_scheduler.fine.cpu()
        place = f"epoch {self.current_epoch}, iteration {len(self.iterations.losses)}"
        self.watch.note(place, loss, fine, batch.get("keys", ()))
        self.iterations.note(loss.item())
        return result

    def on_validation_epoch_start(self) -> None:
        """As nnU-Net's."""
        self.iterations.begin_validation()
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """As nnU-Net's."""
        super().on_validation_epoch_end(val_outputs)
        self.iterations.end()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log as nnU-Net does; end the run when the weights are not finite any more, before they replace good ones."""
        require_progress(self, self.watch.end_epoch(), "finetune")
        super().on_train_epoch_end(train_outputs)
        self._require_finite_weights()

    def on_epoch_end(self) -> None:
        """As nnU-Net's; ends the run where the setting early_stop says so."""
        super().on_epoch_end()
        self._stop_when_stalled()

    def on_train_end(self) -> None:
        """As nnU-Net's."""
        super().on_train_end()
        finish_loggers(self.logger)

    def _stop_when_stalled(self) -> None:
        """All processes know the same Dice, and so come to the same end."""
        patience, epoch = self.settings.early_stop, self.current_epoch
        dice = self.logger.get_value("ema_fg_dice", step=None)
        if patience is not None and epoch < self.num_epochs and stalled(dice, patience, lower_is_better=False):
            self.print_to_log_file(sentence(epoch, patience, "the moving average of the pseudo Dice"))
            raise Enough

    def _require_finite_weights(self) -> None:
        good = [n for n in ("checkpoint_latest.pth", "checkpoint_best.pth") if isfile(join(self.output_folder, n))]
        last = (
            f"the last good checkpoint is {join(self.output_folder, good[0])}" if good else "there is no checkpoint yet"
        )
        require_finite(self.network.parameters(), self.initial_lr, last)

    def save_checkpoint(self, filename: str) -> None:
        """Save as nnU-Net does, but never leave half a file behind, nor weights that are not finite."""
        self._require_finite_weights()
        if not is_first() or self.disable_checkpointing:
            return
        try:
            log = self.logger.local_logger.my_fantastic_logging
            with atomic_path(filename) as temporary, self.iterations.within(log, self.current_epoch + 1):
                super().save_checkpoint(str(temporary))
        except CannotWrite as error:
            if basename(filename) == "checkpoint_final.pth":
                raise
            self.print_to_log_file(f"WARNING: not saved, the training goes on without: {error}")


class SSLFinetuneWarmupTrainer(SSLFinetuneTrainer):
    """The schedule of `SSLFinetuneTrainer` by its name: warm-up of everything, then polynomial decay ("Warm-Up")."""


class SSLFinetunePolyTrainer(SSLFinetuneTrainer):
    """Polynomial decay from the highest learning rate on, as nnU-Net trains (OpenMind's "Default")."""

    schedule_name = "poly"


class SSLFinetuneValleyTrainer(SSLFinetuneTrainer):
    """The decoder alone with falling learning rate, then warm-up of everything, then decay (OpenMind's "Valley")."""

    schedule_name = "valley"


class SSLFinetuneSawtoothTrainer(SSLFinetuneTrainer):
    """Warm-up and decay of the decoder alone, then warm-up and decay of everything (OpenMind's "Sawtooth")."""

    schedule_name = "sawtooth"


class SSLFinetuneFrozenTrainer(SSLFinetuneTrainer):
    """The decoder alone from beginning to end (OpenMind's "Frozen")."""

    schedule_name = "frozen"


class SSLFinetuneLayerDecayTrainer(SSLFinetuneTrainer):
    """Warm-up and decay of everything, with a smaller learning rate for every layer nearer to the image (BEiT, MAE)."""

    schedule_name = "layer_decay"


class SSLScratchTrainer(SSLFinetuneTrainer):
    """The twin of `SSLFinetuneTrainer` from random weights: same network, data and schedule.

    Its default learning rate is the one that suits random weights, ten (U-Nets) or three (Primus) times the
    fine-tuning one; an `initial_lr` in the `finetune` block holds for both.
    """

    recipes = SCRATCH

    def _check_start(self, report: Any) -> None:
        """Raise CheckpointError when there are pre-trained weights after all."""
        if report is not None:
            raise CheckpointError(
                "SSLScratchTrainer trains from random weights. Leave out -pretrained_weights, or use "
                "-tr SSLFinetuneTrainer to fine-tune."
            )
