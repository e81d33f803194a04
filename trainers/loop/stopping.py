"""How a run stops when it was asked to: all processes in the same place, with everything saved and one line that says so."""

from __future__ import annotations

from os.path import join
from signal import Signals

from nnunet_ssl.integration.versions import is_first
from nnunet_ssl.messages import counted
from nnunet_ssl.signals import AFTER_EPOCH
from nnunet_ssl.trainers.context import RunContext, Stoppable
from nnunet_ssl.trainers.loop.early_stop import Enough, sentence, stalled
from nnunet_ssl.trainers.loop.epochs import mean_over_processes
from nnunet_ssl.trainers.loop.interruption import FINISH_EPOCH, asked_to_finish, forget_to_finish, leave_with
from nnunet_ssl.trainers.loop.judging import COLLAPSED, collapse
from nnunet_ssl.trainers.loop.previews import update_report

AGAIN = "The same command with --c continues exactly here (nnUNetv2_pretrain continues by itself)."
USR2 = int(AFTER_EPOCH[0]) if AFTER_EPOCH else 12


def stop_if_asked(trainer: RunContext) -> None:
    """After SIGTERM, SIGINT or SIGUSR1: save where we are and leave, all processes in the same iteration."""
    asked = trainer.consensus.agreed(trainer.interruption.requested)
    if asked is None:
        return
    position = trainer.position
    trainer.network.train()
    if trainer.is_ddp:
        position.finished = [mean_over_processes([result], trainer.device) for result in position.finished]
    done = (
        f"in epoch {position.epoch + 1} after {len(position.finished)} of {trainer.num_iterations_per_epoch} iterations"
    )
    save_and_leave(trainer, f"{asked.name} received: stopped {done}", leave_with(asked))


def stop_after_epoch(trainer: RunContext) -> None:
    """After SIGUSR2, or where there is a file FINISH_EPOCH: save and leave, as an epoch has ended and none has begun."""
    if trainer.position.epoch >= trainer.num_epochs:
        return  # the run ends by itself
    by_file = is_first() and asked_to_finish(trainer.output_folder)
    if trainer.consensus.now(bool(trainer.interruption.finishing or by_file)):
        reason = f"{FINISH_EPOCH} found" if by_file else "SIGUSR2 received"
        sentence = f"{reason}: stopped after {trainer.position.epoch} of {trainer.num_epochs} epochs"
        save_and_leave(trainer, sentence, leave_with(USR2))


def stop_when_stalled(trainer: RunContext) -> None:
    """End the run, as a finished one, where the setting early_stop says that it has not become better for long enough.

    All processes know the same losses, and so come to the same end.
    """
    losses = trainer.logger.local_logger.my_fantastic_logging["val_losses"]
    patience, epoch = trainer.settings.early_stop, trainer.position.epoch
    if epoch < trainer.num_epochs and patience is not None and stalled(losses, patience):
        trainer.print_to_log_file(sentence(epoch, patience, "the validation loss"))
        raise Enough


def stop_if_collapsed(trainer: RunContext) -> None:
    """Warn once of a run that learns nothing; where the settings say so, save and end it with an exit code of its own."""
    log = trainer.logger.local_logger.my_fantastic_logging
    reason = collapse(log, trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.batch_size)
    if reason is None:
        return
    if not trainer.settings.stop_on_collapse:
        if not trainer.warned_of_collapse:
            trainer.warned_of_collapse = True
            trainer.warn_once(f"{reason} nnUNetv2_pretrain --stop-on-collapse ends such a run.")
        return
    if trainer.position.epoch < trainer.num_epochs:
        save_and_leave(
            trainer, f"Stopped after {counted(trainer.position.epoch, 'epoch')}: {reason}", SystemExit(COLLAPSED)
        )


def stop_validating_if_asked(trainer: Stoppable) -> None:
    """After a signal before the final validation or in it: leave, all processes before the same case. All is saved already."""
    asked = trainer.consensus.now(int(trainer.interruption.requested or 0))
    if asked:
        say_what_is_left(trainer, asked)
        leave(trainer, leave_with(asked))


def say_what_is_left(trainer: Stoppable, number: int) -> None:
    """Put into the log that the network is saved and its final validation is not complete."""
    trainer.print_to_log_file(
        f"{Signals(number).name} received: the network is trained and saved, its final validation is not complete. "
        "The same command makes it from its beginning (nnUNetv2_train wants --c)."
    )


def save_and_leave(trainer: RunContext, sentence: str, ending: SystemExit) -> None:
    """Write checkpoint_latest.pth, say so, and end all processes with the code of `ending`."""
    file = join(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    saved = (
        "nothing is saved, checkpointing is disabled" if trainer.disable_checkpointing else f"saved in {file}. {AGAIN}"
    )
    trainer.print_to_log_file(f"{sentence}, {saved}")
    update_report(trainer)
    if is_first() and ending.code == leave_with(USR2).code:
        forget_to_finish(trainer.output_folder)
    leave(trainer, ending)


def leave(trainer: Stoppable, ending: SystemExit) -> None:
    """End this process, once all processes are here: one that leaves earlier ends the others."""
    trainer.consensus.finish()
    trainer.interruption.ignore()
    raise ending
