"""torch.compile where it works, and the same training without it where it does not."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from os.path import expanduser, join
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from nnunet_ssl.backbones.unmeasured import wanted
from nnunet_ssl.trainers.device.memory import is_out_of_memory

VARIABLE = "nnUNet_compile"
CACHE = "TORCHINDUCTOR_CACHE_DIR"
DIFFERENT = 0.5  # of the norm of all gradients, between compiled code and the same not compiled
TRIALS = 5  # steps after which compiled code is trusted; a CUDA graph is recorded in the second and replayed from the third on
# Inductor's limits on how much it fuses: the gradient of a feature map with a skip connection has more than its eight reads,
# and would be written in float32 and read again: a tenth of the memory traffic of a U-Net's step, by its generated code.
FUSE_MORE = {"realize_opcount_threshold": 200, "realize_acc_reads_threshold": 32, "realize_reads_threshold": 8}
GRAPHS = {"triton.cudagraphs": True}
T = TypeVar("T")


class Compiler:
    """Compiles functions when they are first called; where that fails, they and all others run as they are from then on.

    What fails while it is compiled is called again as it is. What fails when it runs, forward or backward, fails in the first
    steps: these are a trial, see `attempt`.

    on: whether to compile at all. log: is told in one line why it failed. recompute: whether blocks are computed again in
    the backward pass. graphs: whether the kernels of a pass are recorded and started as one (CUDA graphs), for networks of so
    many small kernels that a GPU waits for the host; what compiled code returns is then gone with the next step.
    options: of torch.compile.
    """

    def __init__(
        self,
        on: bool,
        log: Callable[[str], object],
        recompute: bool = False,
        graphs: bool = False,
        **options: Any,
    ) -> None:
        self.on, self.log, self.options, self.graphs = on, log, options, graphs
        self._trials = dict.fromkeys((True, False), TRIALS if on else 0)  # left, of steps with gradients and without
        self._trying = False  # whether a step is under way that can be done again
        self._announced = self._gave_up = False
        if not on:
            return
        functorch: Any = torch._functorch.config
        if hasattr(functorch, "force_non_lazy_backward_lowering"):
            # The backward pass is compiled together with the forward pass, so that it cannot fail half-way.
            functorch.force_non_lazy_backward_lowering = True
        if recompute:
            # torch cuts compiled code at the borders of DDP's buckets, but cannot where blocks are recomputed.
            torch._dynamo.config.optimize_ddp = False

    @classmethod
    def for_gpu(cls, log: Callable[[str], object], recompute: bool, kind: str, alone: bool) -> Compiler:
        """As networks of a kind ("unet", "primus") are compiled for a GPU; alone: with nothing but one pass between two steps."""
        keep_compiled_code()
        if kind == "primus":
            graphs = alone and wanted("graphs")
            return cls(True, log, recompute, graphs, options=GRAPHS if graphs else {})
        return cls(True, log, recompute, options=FUSE_MORE if wanted("fusion") else {})

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled as long as that works."""
        if not self.on:
            return function
        compiled = torch.compile(function, **self.options)

        def call(*inputs: Any, **options: Any) -> Any:
            if self.on:
                try:
                    return compiled(*inputs, **options)
                except TorchDynamoException as error:
                    if self._trying:  # a part may have run and drawn random numbers; and all processes are to know
                        raise
                    self._give_up(cause(error))
            return function(*inputs, **options)

        return call

    def compile_forward(self, module: nn.Module) -> None:
        """Compile what a module does when it is called, but not its hooks; the module stays what and where it is."""
        if self.on:
            module.forward = self(module.forward)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """For the time of the context, everything runs as it is."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def on_trial(self, gradients: bool) -> bool:
        """Whether the next step, with or without gradients, is one of the first.

        With several processes the same in all of them, although one may already run everything as it is.
        """
        return self._trials[gradients] > 0

    def join_trial(self) -> None:
        """Take part in the trial of the first steps, as other processes compile, although this one does not."""
        self._trials = {True: TRIALS, False: 0}

    def attempt(
        self,
        gradients: bool,
        step: Callable[[], T],
        again: Callable[[], T],
        agree: Callable[[bool], bool] | None = None,
        settle: Callable[[], object] = bool,
    ) -> T:
        """The result of a step; of `again` where the step is one of the first and any compiled code fails in it.

        again: does the same from the same weights and random numbers; compiling is off by then, for good. agree: says
        whether all processes that share the step got through it, given whether this one did: then all do it again, or none.
        settle: is called once all did. Errors that come back without compiling are raised as they are.
        """
        if self.on and self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if not self.on_trial(gradients) or (agree is None and not self.on):
            result = step()
            settle()
            return result
        if self.on:
            self._announce()
        began, reason, everybody, shared = perf_counter(), None, None, None
        self._trying = True
        try:
            result = step()
        except Elsewhere:
            everybody = False
        except NotCompiled as error:
            shared = error.__cause__
        except Exception as error:
            reason = cause(error)
        finally:
            self._trying = False
        if shared is not None:
            raise shared
        if everybody is None:
            fine = reason is None
            everybody = fine if agree is None else agree(fine)
        if everybody:
            settle()
            self._count(gradients, perf_counter() - began)
            return result
        self.on, self._trials[gradients], result = False, 0, None  # type: ignore[assignment]
        free_memory()  # that the error or the result held
        result = again()
        self._give_up(reason or "in another process")
        return result

    def first(self) -> bool:
        """Whether no step with gradients has run compiled yet."""
        return self.on and self._trials[True] == TRIALS

    def compare(self, parameters: Iterable[nn.Parameter], again: Callable[[], T]) -> T | None:
        """Do a step again without compiling; returns its result where the compiled one had other gradients, else None.

        Compiling is off then, for good. Otherwise the compiled gradients are back afterwards. Compilers have given wrong
        gradients without an error (torch 2.11 for a `torch.autograd.Function`, benchmarks/LOG.md); what half precision makes
        of them is much less than `DIFFERENT`. again: from the same weights and random numbers, beginning with no gradients.
        """
        weights = list(parameters)
        compiled = [p.grad for p in weights]
        for parameter in weights:
            parameter.grad = None
        plain: T | None = None
        try:
            with self.switched_off():
                plain = again()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if plain is None:
            free_memory()
            self.log("The first step was not compared with one that is not compiled: there is no memory for that.")
        else:
            difference = relative_difference([p.grad for p in weights], compiled)
            if difference > DIFFERENT:
                self._give_up(f"its gradients differ by {difference:.0%} from those computed without it")
                return plain
        for parameter, gradient in zip(weights, compiled, strict=True):
            parameter.grad = gradient
        plain = None
        free_memory()  # what compiled code needs less stays free, and is not taken for the training's own peak
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return None

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            where = os.environ.get(CACHE)
            self.log(
                "Compiling the network, which takes a minute or two at the first start"
                f"{f', and less at the next ones (kept in {where})' if where else ''}."
            )

    def _count(self, gradients: bool, seconds: float) -> None:
        if self.on and gradients and self._trials[True] == TRIALS:
            self.log(f"Compiled: the first step took {seconds:.0f} s.")
        self._trials[gradients] -= 1

    def _give_up(self, reason: str) -> None:
        self.on = False
        if self._gave_up:
            return
        self._gave_up = True
        self.log(
            f"WARNING: torch.compile failed ({reason}). The training goes on without it: the same result, only "
            f"slower. To leave it out from the start: export {VARIABLE}=0"
        )


class Elsewhere(Exception):
    """Another process did not get through its part of a step; nobody waits for it."""


def relative_difference(expected: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> float:
    """L2 norm of the difference of all gradients by that of the expected ones; 0 where those are not finite, which says nothing.

    No gradient is one of zero.
    """
    norms, off = [], []
    for one, other in zip(expected, found, strict=True):
        if one is None and other is None:
            continue
        a = torch.zeros_like(other) if one is None and other is not None else one
        b = torch.zeros_like(one) if other is None and one is not None else other
        norms.append(a.float().norm())  # type: ignore[union-attr]
        off.append((a.float() - b.float()).norm())  # type: ignore[union-attr]
    if not norms:
        return 0.0
    length, difference = torch.stack(norms).norm(), torch.stack(off).norm()
    if not bool(length.isfinite() & difference.isfinite()):
        return 0.0
    return float(difference / length.clamp(min=1e-12))


class NotCompiled(Exception):
    """Stands for its cause, an error where processes exchange something and nothing is compiled: others wait in there."""


def free_memory() -> None:
    """Give memory back that nobody refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_compiled_code() -> None:
    """Keep what is compiled in the user's cache folder, unless the user chose another; torch's own choice, /tmp, is not kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or join(expanduser("~"), ".cache")
    folder = join(cache, "nnunet_ssl", "compiled")
    if CACHE in os.environ:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:  # a home that cannot be written: torch's own choice then
        return
    if os.access(folder, os.W_OK):
        os.environ[CACHE] = folder


def cause(error: BaseException) -> str:
    """Type and first line of the error behind one of torch.compile."""
    seen = {error}
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None and inner not in seen:
        error = inner
        seen.add(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):  # an error of another process, whose traceback ends in what it is about
        lines[0] = f"{lines[0]} {lines[-1]}"
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
