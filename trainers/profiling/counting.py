"""The memory of a training step, counted without computing it.

The real step (views, forward and backward pass, clipping, optimiser) runs on torch's fake tensors, which know shapes and
types but hold no values: seconds on any machine, whatever it would take on a GPU. The count is 0.95 to 1.01 of what
tensors took at most on an H200 (benchmarks/LOG.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ssl.backbones.drop_path import drop_by_image
from nnunet_ssl.backbones.recompute import recompute
from nnunet_ssl.methods import get_method, method_names, views_of
from nnunet_ssl.recipes import build_optimizer, pretraining, resolve
from nnunet_ssl.report.memory_fit import Count
from nnunet_ssl.settings.blocks import PretrainBlock
from nnunet_ssl.trainers.device.live_memory import LiveMemory
from nnunet_ssl.trainers.device.precision import assuming
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.trainers.loop.building import build_method
from nnunet_ssl.trainers.profiling.like_cuda import LikeCUDA
from nnunet_ssl.views.rng import ImageGenerator

CPU = torch.device("cpu")  # where fake tensors are without a GPU's driver; `LikeCUDA` gives them a GPU's precision


class CannotCount(RuntimeError):
    """A training step cannot be counted without being run."""


class CountedStep:
    """The training step of a method with the network of these plans, in bfloat16 as on a GPU, ready to be counted.

    Everything is computed, dropped paths too, as in compiled code; norms are torch's own, because compiled code, which keeps
    more than the norms that spare copies, takes as much (benchmarks/LOG.md). recompute: activations are forgotten and computed
    again.
    Raises BackboneError and SettingsError as the training itself would.
    """

    def __init__(self, plans: Mapping[str, Any], configuration: str, method: str, recomputing: bool = False) -> None:
        manager = PlansManager(dict(plans)).get_configuration(configuration)
        block = PretrainBlock.read(manager.configuration, method_names(), configuration)
        method_class = get_method(method)
        config: Any
        settings, config = block.of(method, method_class.Config)
        views = views_of(method_class, config, manager.patch_size)
        # Normalisation is named for every channel.
        channels = 1 if settings.channels == "separate" else len(manager.normalization_schemes)
        self.fake, self.memory = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False), LiveMemory()
        self.sample = ((views.regions,) if views.regions > 1 else ()), channels, views.region_size
        with self._counted(), _NoValues():
            self.method = build_method(method_class, config, manager, channels, views, plain=True).train()
        with self._counted():
            drop_by_image(self.method)  # without keys: it then computes everything
            if recomputing:
                recompute(self.method, self._again)
            recipe = resolve(pretraining(method), self.method.backbone.kind, settings)
            self.trainer: Any = SimpleNamespace(
                method=self.method,
                network=self.method,
                encode=self.method.encode,
                compare=self.method.compare,
                optimizer=build_optimizer(self.method.parameters(), recipe),
                recipe=recipe,
                device=CPU,
                drop_paths=[],
                grad_scaler=None,
            )
        self.memory.watch(self.method.parameters())
        self._step(self.method.images_needed, 1)  # the optimiser's states come with its first step

    def count(self, images: int, micro_batches: int = 1) -> Count:
        """Bytes of a step with so many images per process, which go through the network in equal micro-batches."""
        self._step(images, micro_batches)
        memory, gradients = self.memory, sum(p.grad.nbytes for p in self.method.parameters() if p.grad is not None)
        return Count(images, micro_batches, memory.peak, memory.now - gradients, gradients, memory.gradients_at_peak)

    def _step(self, images: int, micro_batches: int) -> None:
        """One training step, after which weights, gradients and the optimiser's states are all there is."""
        self.trainer.optimizer.zero_grad(set_to_none=True)
        self.memory.begin()
        try:
            with self._counted(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # batches too small to learn from may be counted
                batch, _next = self._batch(images), self._batch(images)  # the next one arrives beside the step
                with torch.no_grad():
                    inputs = self.method.prepare(batch, ImageGenerator(CPU, 0, range(images)))
                stepping.run_prepared(self.trainer, inputs, images, micro_batches, seed=0)
                stepping.optimiser_step(self.trainer)
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
            raise CannotCount(
                f"The training step of {self.method.name} cannot be counted without being run ({error}): tensors that are only "
                "counted have no values. Measure it on a GPU: nnUNetv2_pretrain_benchmark"
            ) from error

    def _batch(self, images: int) -> dict[str, Tensor]:
        regions, channels, size = self.sample
        return {
            "image": torch.empty(images, *regions, channels, *size),
            "excluded": torch.empty(images, *regions, 1, *size, dtype=torch.bool),
        }

    def _again(self) -> AbstractContextManager[object]:
        return _Both(self.method.recomputing(), LikeCUDA())

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with ExitStack() as stack:
            for context in (assuming(torch.bfloat16), self.fake, _InPlace(), self.memory, LikeCUDA()):
                stack.enter_context(context)
            yield


class _Both:
    """Two contexts as one, which can be entered again and again as they can."""

    def __init__(self, first: AbstractContextManager[object], second: AbstractContextManager[object]) -> None:
        self.first, self.second = first, second

    def __enter__(self) -> None:
        self.first.__enter__()
        self.second.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.second.__exit__(*error)
        self.first.__exit__(*error)


class _NoValues(TorchDispatchMode):
    """Where values of fake tensors are asked for, gives 0: initial weights are drawn anew until all are within bounds."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 0
        return func(*args, **(kwargs or {}))


class _InPlace(TorchDispatchMode):
    """Leaves out fused optimisers, which change tensors in place: torch would run some of them on real tensors of zeros."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return None if str(func).startswith("aten._fused_") else func(*args, **(kwargs or {}))
