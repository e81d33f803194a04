"""The memory of a training step, counted on tensors without values: what the real step takes, on a GPU too."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.planners.to_estimate import plans_without_data
from nnunet_ssl.report.gpu_times import gpu_times
from nnunet_ssl.report.memory_fit import GIB
from nnunet_ssl.trainers.device.live_memory import BLOCK, LiveMemory
from nnunet_ssl.trainers.profiling import counting, like_cuda
from nnunet_ssl.trainers.profiling.counting import CannotCount, CountedStep
from nnunet_ssl.trainers.profiling.like_cuda import LikeCUDA

OWN = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
PLANNERS = {"unet": "SSLPlannerResEncTiny", "primus": "SSLPlannerPrimusTiny"}
LARGE = {"resenc_l": "SSLPlannerResEncL", "primus_m": "SSLPlannerPrimusM"}
PAIRS = [(m, k) for m in OWN for k in PLANNERS if k in get_method(m).backbones]
SMALL = {
    "simclr": {"projector_dim": 64},
    "voco": {"projector_dim": 64},
    "consistent_views": {"projector_dim": 64},
    "self_distillation": {"projector_dim": 64, "prototypes": 64},
}
CONFIGURATION = "3d_fullres"


def tiny(kind, method, patch=64):
    plans = plans_without_data(PLANNERS[kind])
    configuration = plans["configurations"][CONFIGURATION]
    configuration["patch_size"] = [patch] * 3
    shorter = {"eva_depth": 2} if kind == "primus" else {"n_blocks_per_stage": [1, 1, 1, 1]}
    configuration["architecture"]["arch_kwargs"].update(shorter)
    configuration["ssl"][method] = SMALL.get(method, {})
    return plans


class _Real(FakeTensorMode):
    """Stands where fake tensors would be made, and leaves the real ones as they are."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("method", "kind"), [("mae", "unet"), ("mae", "primus"), ("simclr", "unet"), ("spark3d", "unet")]
)
def test_counted_is_what_the_real_step_holds(method, kind, parts, monkeypatch):
    """The same step on real tensors of a CPU, whose storages are watched; in a CPU's own precision, which it can compute."""
    monkeypatch.setattr(counting, "LikeCUDA", nullcontext)
    plans = tiny(kind, method, patch=32)
    counted = CountedStep(plans, CONFIGURATION, method).count(4, parts)
    monkeypatch.setattr(counting, "FakeTensorMode", _Real)
    real = CountedStep(plans, CONFIGURATION, method)
    assert type(next(real.method.parameters()).data) is torch.Tensor
    held = real.count(4, parts)
    assert counted.peak == pytest.approx(held.peak, rel=0.01)
    assert (counted.states, counted.gradients) == (held.states, held.gradients)
    weights, moments = sum(p.nbytes for p in real.method.parameters()), 2  # the tiny presets are trained with AdamW
    assert held.states == pytest.approx(weights + moments * held.gradients, rel=0.05)
    assert held.peak > held.states + held.gradients


class _Names(LikeCUDA):
    """Remembers what is called under autocast."""

    seen: ClassVar[set[str]] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if torch.is_autocast_enabled("cpu"):
            self.seen.add(getattr(func, "__name__", ""))
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_every_pair_can_be_counted(method, kind, monkeypatch):
    """And calls no function for which a GPU's autocast has another rule than a CPU's, but those in the lists."""
    monkeypatch.setattr(counting, "LikeCUDA", _Names)
    monkeypatch.setattr(_Names, "seen", set())
    plans = tiny(kind, method)
    plain, recomputing = (CountedStep(plans, CONFIGURATION, method, recompute) for recompute in (False, True))
    few, more = plain.count(2), plain.count(4)
    assert few.peak < more.peak < 2 * few.peak  # states are there once
    assert few.peak < plain.count(4, 2).peak < more.peak
    assert plain.count(2) == few  # nothing is left behind by a step
    assert recomputing.count(4).peak < more.peak
    assert ("conv3d" if kind == "unet" else "linear") in _Names.seen
    unlike = _Names.seen & (with_rule("AutocastCUDA") ^ with_rule("AutocastCPU"))
    assert unlike - like_cuda.OTHERWISE - PROMOTING == set()


@pytest.mark.parametrize("backbone", LARGE)
def test_within_a_tenth_of_what_was_measured_on_gpus(backbone):
    """Full size: the rows of the table of measured times, which hold what tensors took at most."""
    rows = [
        r for r in gpu_times() if (r.method, r.backbone, r.recompute, r.compiled) == ("mae", backbone, False, False)
    ]
    assert {r.batch for r in rows} >= {2, 8}
    step = CountedStep(plans_without_data(LARGE[backbone]), CONFIGURATION, "mae")
    for row in rows:
        assert step.count(row.batch).peak / GIB == pytest.approx(row.allocated_gib, rel=0.1), row


def test_live_memory_counts_as_torchs_own_tracker():
    """torch's MemTracker is the twin: slower, in a private module, and for a single pass."""
    tracker = pytest.importorskip("torch.distributed._tools.mem_tracker")

    def network():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 28 * 28, 4)
        )

    def step(model, optimizer, images):
        model(images).square().mean().backward()
        optimizer.step()

    peaks = []
    for new in (LiveMemory, tracker.MemTracker):
        with FakeTensorMode():
            mode, model, images = new(), network(), torch.empty(5, 3, 32, 32)
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)
            if isinstance(mode, LiveMemory):
                for tensor in (*model.parameters(), images):
                    mode.add(tensor)
            else:
                mode.track_external(model, optimizer, images)
            with mode:
                step(model, optimizer, images)
        peaks.append(
            mode.peak if isinstance(mode, LiveMemory) else mode.get_tracker_snapshot("peak")[images.device]["Total"]
        )
    ours, theirs = peaks
    assert theirs <= ours <= theirs + 100 * BLOCK  # whole blocks, as on a GPU


def test_live_memory_forgets_what_is_gone():
    with LiveMemory() as memory:
        first = torch.empty(1024, dtype=torch.uint8)
        view = first[10:]
        assert memory.now == 1024
        torch.empty(4096, dtype=torch.uint8)
        assert (memory.now, memory.peak) == (1024, 1024 + 4096)
        del first
        assert memory.now == 1024  # the view still holds it
        del view
        assert memory.now == 0
        small = torch.empty(1, dtype=torch.uint8)
        assert memory.now == BLOCK
    del small
    assert memory.now == 0  # also outside


def test_dropped_paths_are_counted_as_compiled_code_computes_them():
    plans = tiny("primus", "mae")
    dropping = copy.deepcopy(plans)
    dropping["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["drop_path_rate"] = 0.9
    peaks = [CountedStep(p, CONFIGURATION, "mae").count(4).peak for p in (plans, dropping)]
    assert peaks[1] >= peaks[0]


def test_what_cannot_be_counted_says_so(monkeypatch):
    def prepare(self, batch, generator):
        return {"image": batch["image"] * batch["image"].mean().item(), "excluded": batch["excluded"]}

    monkeypatch.setattr(get_method("mae"), "prepare", prepare)
    with pytest.raises(CannotCount, match="step of mae cannot be counted"):
        CountedStep(tiny("unet", "mae"), CONFIGURATION, "mae")


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(BackboneError):
        CountedStep(tiny("unet", "mae", patch=60), CONFIGURATION, "mae")


# ---- a GPU's precision on a CPU --------------------------------------------------------------------------------------

ALIASES = {
    "grid_sample": "grid_sampler_3d",
    "interpolate": "upsample_trilinear3d",
    "normalize": "linalg_vector_norm",
    "__pow__": "pow",
    "__rpow__": "pow",
}
PROMOTING = {"cat", "stack", "index_copy", "index_put", "scatter_add", "addcmul", "addcdiv", "dot", "tensordot"}


@cache
def with_rule(key):
    """Operators that have a rule of their own under a kind of autocast, whatever their overload."""
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")]
    own = filter(lambda n: torch._C._dispatch_has_kernel_for_dispatch_key(n, key), names)
    return {n.removeprefix("aten::").partition(".")[0] for n in own}


def test_the_lists_are_torchs():
    on_gpus_only = [n for n in like_cuda.FLOAT32 + like_cuda.RESULT_FLOAT32 if n != "rms_norm"]  # newer than torch 2.5
    for name in on_gpus_only:
        assert ALIASES.get(name, name) in with_rule("AutocastCUDA") - with_rule("AutocastCPU"), name
    for name in like_cuda.AS_THEY_COME:
        assert ALIASES.get(name, name) in with_rule("AutocastCPU") - with_rule("AutocastCUDA"), name


def test_precision_is_a_gpus():
    half = torch.autocast("cpu", torch.bfloat16)
    with FakeTensorMode():
        x, layer, tokens = torch.empty(1, 4, 8, 8, 8), nn.Conv3d(4, 4, 3), torch.empty(2, 5, 8)
        norm, linear = nn.LayerNorm(8), nn.Linear(8, 8)
        with half, LikeCUDA():
            assert layer(x).dtype is torch.bfloat16
            assert nn.functional.avg_pool3d(layer(x), 2).dtype is torch.bfloat16
            assert norm(linear(tokens)).dtype is torch.float32
            assert linear(tokens).softmax(-1).dtype is linear(tokens).sum().dtype is torch.float32
            assert linear(tokens).pow(2).dtype is (linear(tokens) ** 2).dtype is torch.float32
        with half:
            assert nn.functional.avg_pool3d(layer(x), 2).dtype is torch.float32
            assert norm(linear(tokens)).dtype is torch.bfloat16
        with LikeCUDA():  # no autocast, no change
            assert nn.functional.layer_norm(tokens.bfloat16(), (8,)).dtype is torch.bfloat16
