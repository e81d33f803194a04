"""nnU-Net's own training, which signals stop without loss: what fine-tuning trainers are built on."""

from __future__ import annotations

from contextlib import suppress
from os.path import join
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.integration.versions import is_first
from nnunet_ssl.signals import AT_ONCE, Stopped, guarded_forks, stopping_on_signals
from nnunet_ssl.trainers.distributed.processes import Consensus
from nnunet_ssl.trainers.loop.early_stop import Enough
from nnunet_ssl.trainers.loop.interruption import (
    FINISH_EPOCH,
    Interruption,
    asked_to_finish,
    forget_to_finish,
    leave_with,
)
from nnunet_ssl.trainers.loop.run_lock import alone_in_folder_of
from nnunet_ssl.trainers.loop.stopping import USR2, leave, say_what_is_left, stop_validating_if_asked

LATEST = "checkpoint_latest.pth"


class InterruptibleTrainer(nnUNetTrainer):
    """Does what `trainers/loop/interruption.py` says about signals.

    A checkpoint that a signal has written belongs into the middle of an epoch: `trainers/loop/iterations.py`.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net reads this exact signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.interruption = Interruption()
        self.interruption.loud = is_first()
        self.consensus = Consensus(several=False)

    def run_training(self) -> None:
        """nnU-Net's loop."""
        with alone_in_folder_of(self):
            self.interruption.listen()
            self.consensus = Consensus(self.is_ddp)
            try:
                try:
                    super().run_training()
                except Enough:
                    self.on_train_end()
                stop_validating_if_asked(self)
            finally:
                self.interruption.ignore()

    def get_dataloaders(self) -> Any:
        """nnU-Net's, whose processes leave signals to this one, and end with it."""
        with guarded_forks():
            return super().get_dataloaders()

    def on_train_epoch_start(self) -> None:
        """As nnU-Net's, whose own handler for SIGUSR1 does not stay."""
        self.interruption.insist()
        super().on_train_epoch_start()
        self.interruption.insist()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, unless somebody asked to stop."""
        self._stop_if_asked()
        return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, unless somebody asked to stop."""
        self._stop_if_asked()
        return super().validation_step(batch)

    def on_epoch_end(self) -> None:
        """As nnU-Net's; ends here where the epoch was to be the last one for now."""
        super().on_epoch_end()
        if self.current_epoch >= self.num_epochs:
            return
        by_file = is_first() and asked_to_finish(self.output_folder)
        if self.consensus.now(bool(self.interruption.finishing or by_file)):
            reason = f"{FINISH_EPOCH} found" if by_file else "SIGUSR2 received"
            done = f"stopped after {self.current_epoch} of {self.num_epochs} epochs"
            self._save_and_leave(f"{reason}: {done}", "goes on with the next", USR2)

    def on_train_end(self) -> None:
        """As nnU-Net's."""
        super().on_train_end()
        if is_first():
            forget_to_finish(self.output_folder)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net's; a signal ends it, and the network is saved already."""
        self.interruption.listen()  # to SIGUSR2 as well, after which there is only this to be finished
        try:
            with stopping_on_signals(AT_ONCE), alone_in_folder_of(self):
                super().perform_actual_validation(save_probabilities)
        except Stopped as stopped:
            say_what_is_left(self, stopped.number)
            raise leave_with(stopped.number) from None
        finally:
            self.interruption.ignore()

    def _stop_if_asked(self) -> None:
        asked = self.consensus.agreed(self.interruption.requested)
        if asked is not None:
            begun = f"stopped in epoch {self.current_epoch}"
            self._save_and_leave(f"{asked.name} received: {begun}", "goes on from there", asked)

    def _save_and_leave(self, sentence: str, then: str, number: int) -> None:
        file = join(self.output_folder, LATEST)
        self.current_epoch -= 1  # nnU-Net saves the number of the epoch that follows
        self.save_checkpoint(file)
        self.current_epoch += 1
        saved = "nothing is saved, checkpointing is disabled"
        if not self.disable_checkpointing:
            saved = (
                f"saved in {file}. The same command {then} (nnUNetv2_train wants --c in place of -pretrained_weights)."
            )
        self.print_to_log_file(f"{sentence}, {saved}")
        if is_first() and number == USR2:
            forget_to_finish(self.output_folder)
        for loader in (self.dataloader_train, self.dataloader_val):
            with suppress(AttributeError):  # without reading processes there is nothing to end
                loader._finish()
        leave(self, leave_with(number))
