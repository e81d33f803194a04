"""The one trainer of all pretext tasks: nnU-Net's loop around a `Method`."""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from os.path import isfile, join
from typing import Any, ClassVar

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_ssl.backbones.attention import attend_by_products_when_short, attend_deterministically
from nnunet_ssl.backbones.bfloat16_conv3d import avoid_bfloat16_conv3d_bug
from nnunet_ssl.backbones.drop_path import drop_by_image
from nnunet_ssl.backbones.recompute import recompute
from nnunet_ssl.checkpoints.write import save_checkpoint
from nnunet_ssl.integration.architecture import build_network
from nnunet_ssl.integration.logger import attach_loggers, finish_loggers, use_pretext_logger
from nnunet_ssl.integration.pretrained_weights import unwrap
from nnunet_ssl.integration.versions import is_first, join_group, without_process_group
from nnunet_ssl.integration.writing import begin_run, whole_files, without_files
from nnunet_ssl.methods import get_method, method_names, views_of
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.planners.preprocessing.normalization import raw_channels
from nnunet_ssl.recipes import WarmupPolyLR, build_optimizer, pretraining, resolve
from nnunet_ssl.settings.blocks import PretrainBlock
from nnunet_ssl.trainers.data.corpus import TRAINING, VALIDATION, derive_seed, seed_everything
from nnunet_ssl.trainers.data.loading import build_loader, share_of_batch, split_corpus
from nnunet_ssl.trainers.device.compiling import Compiler
from nnunet_ssl.trainers.device.determinism import deterministic
from nnunet_ssl.trainers.device.devices import device_of_this_process, keep_freed_memory, require_device
from nnunet_ssl.trainers.device.out_of_memory import say_what_helps
from nnunet_ssl.trainers.device.precision import autocast_dtype
from nnunet_ssl.trainers.distributed.processes import Consensus, place
from nnunet_ssl.trainers.distributed.sharding import build_sharded_optimizer
from nnunet_ssl.trainers.loop import epochs, state, stepping
from nnunet_ssl.trainers.loop.building import build_method
from nnunet_ssl.trainers.loop.early_stop import Enough
from nnunet_ssl.trainers.loop.finite import Watch, require_finite, require_progress
from nnunet_ssl.trainers.loop.interruption import Interruption, forget_to_finish
from nnunet_ssl.trainers.loop.judging import YARDSTICK, last_finite, verdict
from nnunet_ssl.trainers.loop.log_lines import summary
from nnunet_ssl.trainers.loop.next_commands import next_commands_of
from nnunet_ssl.trainers.loop.position import Phase, Position
from nnunet_ssl.trainers.loop.previews import update_report
from nnunet_ssl.trainers.loop.probing import Probe
from nnunet_ssl.trainers.loop.progress import EpochBar
from nnunet_ssl.trainers.loop.run_lock import alone_in_folder_of
from nnunet_ssl.trainers.loop.stopping import (
    stop_after_epoch,
    stop_if_asked,
    stop_if_collapsed,
    stop_validating_if_asked,
    stop_when_stalled,
)
from nnunet_ssl.trainers.loop.validation import summary_file, validate_cases


class SSLTrainer(nnUNetTrainer):
    """Pre-trains the network of any nnU-Net plans with the pretext task `method_name`.

    What a batch holds, where its masks lie and which paths are dropped is a function of (seed, epoch, iteration): runs are
    repeatable, a resumed run continues where the interrupted one stopped, and several processes do what one does. On a CPU
    it continues bit by bit; a GPU adds up in any order, unless the setting `deterministic` asks it not to.
    Settings come from the plans' `ssl` block. Labels are ignored, except `anonymised`, which no loss asks for.
    """

    method_name: ClassVar[str]
    network: Any  # the Method, maybe sharded, or inside the wrapper of DDP
    was_initialized: bool

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
        dataset_json = without_files(dataset_json)
        self.position = Position()
        with without_process_group(device):
            super().__init__(plans, configuration, fold, dataset_json, device)
        join_group(self)
        self.device = device_of_this_process(device)
        use_pretext_logger(self.logger)
        attach_loggers(self)
        block = PretrainBlock.read(self.configuration_manager.configuration, method_names(), configuration)
        self.method_class = get_method(self.method_name)
        self.method_config: Any
        self.settings, self.method_config = block.of(self.method_name, self.method_class.Config)
        self.views = views_of(self.method_class, self.method_config, self.configuration_manager.patch_size)
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.num_val_iterations_per_epoch
        self.save_every = self.settings.save_every
        self.enable_deep_supervision = False
        self.grad_scaler = torch.amp.GradScaler("cuda") if autocast_dtype(self.device) is torch.float16 else None
        self.interruption = Interruption()
        self.interruption.loud = is_first()
        self.determinism = ExitStack()  # what is to be put back after the training
        self.preview: dict[str, Tensor] = {}  # of the first validation image
        self.preview_key = ""  # which one that is
        self._yardsticks: list[Tensor] = []  # of this epoch's validation batches
        self.warned_of_collapse = False
        self.probe: Probe | None = None
        self._said: set[str] = set()
        self.share_of_epoch = 1.0  # computed since its start was noted; less right after a resume
        self._bar: EpochBar | None = None

    @property
    def current_epoch(self) -> int:
        """nnU-Net's name for the epoch of `position`."""
        return self.position.epoch

    @current_epoch.setter
    def current_epoch(self, epoch: int) -> None:
        self.position.epoch = epoch

    # ---- what is trained -------------------------------------------------------------------------------------------

    @property
    def method(self) -> Method:
        """The method without the wrappers of DDP and torch.compile."""
        return unwrap(self.network)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The bare network of the plans."""
        return build_network(configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision)

    def initialize(self) -> None:
        """Build network, method, optimiser and schedule."""
        if self.was_initialized:
            raise RuntimeError("The trainer is already initialised.")
        seed_everything(derive_seed(self.settings.seed))
        self.num_input_channels = 1 if self.settings.channels == "separate" else len(self._channel_names())
        shard, compiles = self.settings.shard, self._do_i_compile()
        method = build_method(
            self.method_class,
            self.method_config,
            self.configuration_manager,
            self.num_input_channels,
            self.views,
            channels_last=compiles and self.device.type == "cuda" and not shard,
        )
        self.drop_paths = drop_by_image(method)
        if self.device.type == "cpu":
            avoid_bfloat16_conv3d_bug(method)
            attend_by_products_when_short(method)
        if self.wants_determinism:
            attend_deterministically(method)
        self.recipe = resolve(pretraining(self.method_name), method.backbone.kind, self.settings)
        self.num_epochs, self.initial_lr = self.recipe.num_epochs, self.recipe.initial_lr
        self.weight_decay = self.recipe.weight_decay
        self._set_batch_size_and_oversample()
        if self.settings.recompute:
            recompute(method, method.recomputing)
        if compiles and self.device.type == "cuda":
            alone = not self.is_ddp and self.settings.accumulate == 1 and not self.settings.recompute
            self.compiler = Compiler.for_gpu(
                self.print_to_log_file, self.settings.recompute, method.backbone.kind, alone
            )
        else:
            self.compiler = Compiler(compiles, self.print_to_log_file, self.settings.recompute)
        self.network, self.encode, self.compare = place(method, self.device, self.compiler, self.is_ddp, shard)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.consensus = Consensus(self.is_ddp)
        if not self.consensus.all_fine(not compiles) and not compiles:
            self.compiler.join_trial()
        self.watch = Watch(self.print_to_log_file if is_first() else print, self.grad_scaler is not None)
        self.was_initialized = True
        self.logger.update_config(
            {"hparas": {**asdict(self.settings), **asdict(self.recipe), "method": self.method_name}}
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLR]:
        """Optimiser and schedule of the recipe."""
        build = build_sharded_optimizer if self.settings.shard else build_optimizer
        optimizer = build(self.network.parameters(), self.recipe)
        return optimizer, WarmupPolyLR(optimizer, self.recipe)

    def _set_batch_size_and_oversample(self) -> None:
        total = self.settings.batch_size or self.configuration_manager.batch_size
        processes = dist.get_world_size() if self.is_ddp else 1
        self.total_batch_size = total
        self.batch_size = share_of_batch(total, processes, self.settings.accumulate)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Pre-training knows no deep supervision."""

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Log once, not once per process."""
        if is_first():
            super().print_to_log_file(*args, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    def print_plans(self) -> None:
        """nnU-Net prints the whole plans, which lie beside the log; `summary` says what matters."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs a package that no longer works."""

    # ---- data ------------------------------------------------------------------------------------------------------

    def _channel_names(self) -> dict[str, str]:
        return self.dataset_json.get("channel_names") or self.dataset_json["modality"]

    def do_split(self) -> tuple[list[str], list[str]]:
        """(training, validation) identifiers.

        Fold "all": a few subjects, always the same, are held out to watch the loss. A numbered fold: nnU-Net's own
        split, so that pre-training sees no image on which that fold is later validated.
        """
        with whole_files(self.print_to_log_file):
            return split_corpus(self, super().do_split)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Endless iterators over training batches, from the present iteration on, and over the validation batches."""
        training, validation = self.do_split()
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        per_epoch = self.num_iterations_per_epoch
        replayed = self.position.replayed
        first = self.current_epoch * per_epoch + len(replayed)
        upcoming = build_loader(self, training, TRAINING, range(first, self.num_epochs * per_epoch))
        watched = build_loader(self, validation, VALIDATION, range(self.num_val_iterations_per_epoch))
        return epochs.replay(replayed, upcoming), watched

    # ---- the loop's steps ------------------------------------------------------------------------------------------

    @property
    def wants_determinism(self) -> bool:
        """Whether deterministic algorithms were asked for and are not a matter of course: CPUs have no others."""
        return self.settings.deterministic and self.device.type == "cuda"

    def _do_i_compile(self) -> bool:
        """As nnU-Net says; but compiled code takes what is fastest at the moment, and so adds up in another order each time."""
        return not self.wants_determinism and super()._do_i_compile()

    def run_training(self) -> None:
        """nnU-Net's loop; what it changes in torch is put back however it ends.

        Signals are remembered meanwhile, and in the final validation.
        """
        with alone_in_folder_of(self):
            self.interruption.listen()
            try:
                with self.determinism:
                    self._train_until_enough()
                stop_validating_if_asked(self)
            finally:
                self.interruption.ignore()

    def _train_until_enough(self) -> None:
        try:
            super().run_training()
        except Enough:
            self.on_train_end()

    def on_train_start(self) -> None:
        """Start, or refuse to overwrite what is there."""
        if self.wants_determinism:  # here, not where nnU-Net's command would set cuDNN's flags once more
            self.determinism.enter_context(deterministic(self.warn_once))
        if not self.position.resumed and is_first():
            state.refuse_to_overwrite(self.output_folder)
        if not self.was_initialized:
            self.initialize()
        self.consensus.check_start(self.current_epoch, len(self.position.replayed), self.output_folder)
        with whole_files(self.print_to_log_file):
            if is_first():
                super().on_train_start()
            else:  # what nnU-Net does there, without the files, which the first process alone writes
                self.dataloader_train, self.dataloader_val = self.get_dataloaders()
                dist.barrier()  # the first process waits in the same place, its files written but for plans.json and the like
        schemes = self.configuration_manager.normalization_schemes
        for warning in raw_channels(self.plans_manager.plans, schemes, self._channel_names()):
            self.warn_once(warning)
        self.print_to_log_file(f"{summary(self)}\n", add_timestamp=False)
        if self.settings.probe is not None and is_first():
            self.probe = Probe(self)
        stop_when_stalled(self)

    def on_train_epoch_start(self) -> None:
        """As nnU-Net's, without its lines: `on_epoch_end` writes one."""
        self.position.begin_epoch()
        self.interruption.insist()
        self.network.train()
        self.lr_scheduler.step(self.current_epoch)
        self.logger.log("lrs", self.optimizer.param_groups[0]["lr"], self.current_epoch)
        done = len(self.position.replayed)
        self.share_of_epoch = 1 - done / self.num_iterations_per_epoch
        self._bar = EpochBar(self.current_epoch, self.num_epochs, self.num_iterations_per_epoch, done)

    def warn_once(self, message: str) -> None:
        """Put a warning into the log, the first time it comes."""
        self.say_once(f"WARNING: {message}")

    @property
    def warned(self) -> tuple[str, ...]:
        """The warnings that the log holds by now."""
        return tuple(sorted(m.removeprefix("WARNING: ") for m in self._said if m.startswith("WARNING: ")))

    def say_once(self, message: str) -> None:
        """Put a line into the log, the first time it comes."""
        if message not in self._said:
            self._said.add(message)
            self.print_to_log_file(message)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One optimisation step; the losses stay on the device until the epoch ends."""
        if isinstance(batch, epochs.Replay):
            result: dict[str, Any] = dict(batch.result)
        else:
            stop_if_asked(self)
            iteration = self.position.iteration
            step = self.current_epoch * self.num_iterations_per_epoch + iteration
            self.method.progress = step / (self.num_epochs * self.num_iterations_per_epoch)
            with say_what_helps(self):
                output = self._step(batch, step)
                fine = stepping.optimiser_step(self, output.loss)
                self.method.after_step(output.statistics, fine)
            place = f"epoch {self.current_epoch + 1}, iteration {iteration + 1}"
            self.watch.note(place, output.loss, fine, batch.get("key", ()))
            result = {"loss": output.loss.detach(), **output.terms}
            assert self._bar is not None
            self._bar.update(result["loss"])
        self.position.finished.append(result)
        return result

    def _step(self, batch: dict[str, Any], step: int) -> MethodOutput:
        """Loss and gradients of a batch; done again without compiling where one of the first steps fails when compiled."""

        def compute() -> MethodOutput:
            self.optimizer.zero_grad(set_to_none=True)
            return stepping.run_batch(self, batch, TRAINING, step)

        if self.settings.shard:  # processes exchange weights in the midst of compiled code: none can do it again alone
            return compute()
        if not self.is_ddp:
            first = self.compiler.first()
            output = self.compiler.attempt(True, compute, compute)
            other = self.compiler.compare(self.network.parameters(), compute) if first and self.compiler.on else None
            return output if other is None else other
        if not self.compiler.on_trial(gradients=True):
            return self.compiler.attempt(True, compute, compute)
        # Where preparing fails, others wait for this process in what follows: it is not part of the attempt.
        run = stepping.prepare_batch(self, batch, TRAINING, step)

        def attempt(meet: stepping.Meeting | None) -> MethodOutput:
            self.optimizer.zero_grad(set_to_none=True)
            return run(meet)

        alone, together = partial(attempt, self.consensus.meet), partial(attempt, None)
        settle = partial(stepping.average_gradients, self.method)
        return self.compiler.attempt(True, alone, together, self.consensus.all_fine, settle)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        if self._bar is not None:
            self._bar.close()
        self.position.replayed = []
        require_progress(self, self.watch.end_epoch(), "ssl")
        epochs.log_results(self, train_outputs, "train")
        self._require_finite_weights()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.position.phase, self.position.validated = Phase.VALIDATION, 0

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Loss on a validation batch. Crops and masks are the same in every epoch, so epochs can be compared."""
        stop_if_asked(self)
        if self.measures_yardstick:
            self._measure_yardstick(batch)
        compute = partial(stepping.run_batch, self, batch, VALIDATION, self.position.iteration)
        # Sharded, processes exchange weights in the midst of it: none can do it again alone.
        output = compute() if self.settings.shard else self.compiler.attempt(False, compute, compute)
        if self.position.iteration == 0:
            self.preview = {k: v[0].detach().cpu() for k, v in output.preview.items()}
            self.preview_key = str(batch["key"][0])
        self.position.validated += 1
        return {"loss": output.loss.detach(), **output.terms}

    @property
    def measures_yardstick(self) -> bool:
        """Whether the yardstick of the held-out batches is not known yet; they are the same in every epoch."""
        return last_finite(self.logger.local_logger.my_fantastic_logging.get(YARDSTICK, ())) is None

    def _measure_yardstick(self, batch: dict[str, Any]) -> None:
        """Prepare a validation batch as it will be once more, and keep what the trivial answer costs; waits for the device."""
        inputs, _ = stepping.prepare_inputs(self, batch, VALIDATION, self.position.iteration)
        value = self.method.yardstick(inputs)
        if value is not None:
            self._yardsticks.append(value)

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        epochs.log_results(self, val_outputs, "val")
        epochs.log_yardstick(self, self._yardsticks)
        self._yardsticks = []

    def on_epoch_end(self) -> None:
        """Log, draw, save."""
        self.position.phase = Phase.ENDED
        epochs.finish_epoch(self)
        self.position.next_epoch()
        stop_when_stalled(self)
        stop_if_collapsed(self)
        stop_after_epoch(self)

    def on_train_end(self) -> None:
        self.position.phase = Phase.ENDED  # nnU-Net goes back to the last epoch to save it
        summary = summary_file(self.output_folder)
        if is_first() and isfile(summary):
            os.remove(summary)  # of a shorter training
        super().on_train_end()
        self.position.phase = Phase.FINISHED
        self.print_to_log_file(verdict(self.logger.local_logger.my_fantastic_logging, self.method_class.trivial_answer))
        finish_loggers(self.logger)
        self.consensus.finish()
        if is_first():
            forget_to_finish(self.output_folder)
        previous = join(self.output_folder, "checkpoint_latest_previous.pth")
        if is_first() and isfile(previous):
            os.remove(previous)
        self.dataloader_train = self.dataloader_val = None  # ends their workers

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Run the method on the centre of every held-out case: pictures and errors go to `validation/`."""
        self.interruption.listen()
        try:
            deterministically = deterministic(self.warn_once) if self.wants_determinism else nullcontext()
            with alone_in_folder_of(self), deterministically:
                if not self.was_initialized:
                    self.initialize()
                validate_cases(self)
                update_report(self)
            self.print_to_log_file(next_commands_of(self), add_timestamp=False)
        finally:
            self.interruption.ignore()

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _require_finite_weights(self) -> None:
        """Raise TrainingError where there is nothing left that is worth to be saved."""
        file = state.existing_checkpoint(self.output_folder)
        last = f"the last good checkpoint is {file}" if file else "there is no checkpoint yet"
        require_finite(self.network.parameters(), self.initial_lr, last)

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint atomically; `network_weights` is what nnU-Net's own -pretrained_weights loads.

        Raises TrainingError instead, and leaves the file that is there, when weights are not finite.
        """
        if not is_first() and not self.settings.shard:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        self._require_finite_weights()
        checkpoint = state.pack(self)  # where states are sharded, every process brings its part
        if is_first():
            keep = os.path.basename(filename) == "checkpoint_latest.pth"
            save_checkpoint(checkpoint, filename, keep_previous=keep)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Continue from a checkpoint; a damaged one is replaced by the one before it, with a line in the log."""
        if not self.was_initialized:
            self.initialize()
        self.inference_allowed_mirroring_axes = state.unpack(self, filename_or_checkpoint)
