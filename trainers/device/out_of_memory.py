"""What to type when a step does not fit into the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.errors import MachineError
from nnunet_ssl.trainers.context import LoaderContext
from nnunet_ssl.trainers.device import memory


class OutOfMemory(MachineError, torch.OutOfMemoryError):
    """A step finds no memory; the message says what needs less."""


@contextmanager
def say_what_helps(context: LoaderContext) -> Iterator[None]:
    """Turn the error of a step that finds no memory into one that says what to type."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise OutOfMemory(what_helps(context)) from error


def what_helps(context: LoaderContext) -> str:
    """The message: what did not fit, and the settings that need less."""
    images, micro_batches = context.batch_size, context.settings.accumulate
    advice = []
    more = next((n for n in range(micro_batches + 1, images + 1) if images % n == 0), None)
    if more is not None:
        advice.append(f"--accumulate {more} (the same result, hardly slower)")
    if not context.settings.recompute:
        advice.append("--recompute (the same result, about a third slower)")
    taken = f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
    begun = f"Add {' or '.join(advice)}: a run that has begun continues with it. " if advice else ""
    return (
        f"Out of memory: {images} image{'s' if images > 1 else ''} per process{taken}, "
        f"{shape_text(context.views.network_size)} voxels, on {context.device}. {begun}A new run needs less with a smaller "
        "--patch-size N or --batch-size N. (nnUNetv2_train: accumulate, recompute and batch_size in the plans' ssl block.)"
    )
