"""The benchmark of a pre-training: figures that add up, counts that are right, and what it says when it cannot."""

from __future__ import annotations

import json
import weakref
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_ssl.report.benchmark import PARTS

SMALL = ["--patch-size", "32", "--batch-size", "2", "--iterations", "5", "--warmup", "1", "-device", "cpu"]


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def small_ceilings(monkeypatch):
    """Ceilings from small matrices: they are slower than those of large ones, and enough for tiny networks."""
    from nnunet_ssl.trainers.profiling import peak_flops

    monkeypatch.setitem(peak_flops.MATRIX, "cpu", 512)
    monkeypatch.setitem(peak_flops.CONVOLUTIONS, "cpu", ((2, 64, 16),))


@pytest.fixture
def measured(small_ceilings):
    """Function (backbone, further arguments) -> JSON of a benchmark on artificial images, table, picture."""
    import contextlib
    import io

    from nnunet_ssl.cli.benchmark import main

    def measure(tmp_path: Path, *arguments: str) -> tuple[dict, str, Path]:
        file, picture, out = tmp_path / "figures.json", tmp_path / "figures.png", io.StringIO()
        with contextlib.redirect_stdout(out):
            main([*SMALL, *arguments, "--json", str(file), "--picture", str(picture)])
        return json.loads(file.read_text()), out.getvalue(), picture

    return measure


def test_figures_add_up(measured, tmp_path):
    figures, table, picture = measured(tmp_path, "--backbone", "primus_tiny", "--epochs", "7")
    assert set(figures) == {"format", "setting", "speed", "breakdown", "memory", "flops", "estimate", "notes"}
    shares, seconds = figures["breakdown"]["shares"], figures["breakdown"]["seconds"]
    assert list(shares) == list(seconds) == list(PARTS)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for part, share in shares.items())  # every part is really marked in the step
    assert shares["backward"] > shares["optimiser"] > shares["transfer"]

    speed, setting, estimate = figures["speed"], figures["setting"], figures["estimate"]
    assert speed["samples_per_second"] == pytest.approx(setting["batch_size"] / speed["mean"])
    assert speed["p10"] <= speed["median"] <= speed["p90"]
    assert setting["patch_size"] == [32, 32, 32]
    assert estimate["epochs"] == 7
    assert estimate["samples"] == 7 * 50 * 2
    parts = [estimate[f"{part}_hours"] for part in ("training", "validation", "checkpoint")]
    assert estimate["hours"] == pytest.approx(sum(parts))
    assert estimate["training_hours"] == pytest.approx(7 * 50 * speed["mean"] / 3600)
    assert estimate["checkpoints"] == 2  # fewer epochs than save_every: the best one and the final one
    # Weights in float32, and AdamW's two moments of each.
    assert estimate["checkpoint_bytes"] == pytest.approx(3 * 4 * setting["parameters"], rel=0.1)
    assert figures["memory"]["device"] is figures["memory"]["reserved"] is None
    assert figures["memory"]["process"] > 100 * 2**20

    flops = figures["flops"]
    assert 0 < flops["achieved"] < max(flops["matmul_peak_flops"], flops["conv_peak_flops"])
    assert flops["achieved"] == pytest.approx(flops["per_iteration"] / speed["mean"])
    assert flops["share_of_matmul"] == pytest.approx(flops["achieved"] / flops["matmul_peak_flops"])
    for text in ("samples/s", *PARTS, "GiB", "TFLOP/s", "hours"):
        assert text in table
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "figures.json", picture]  # nothing else is left behind


def test_real_data_and_loss_in_parts(measured, tmp_path, monkeypatch):
    """A data set that is there is read where it is; a method whose images are compared is measured in parts as well."""
    from nnunet_ssl.planners.synthetic import DATASET, synthetic_dataset

    with synthetic_dataset(str(tmp_path / "data"), "SSLPlannerResEncTiny", [32, 32, 32], cases=3):
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        before = set((tmp_path / "data").rglob("*"))
        arguments = ["999", "--backbone", "resenc_tiny", "--method", "simclr", "--set", "accumulate=2"]
        figures, _, _ = measured(tmp_path, *arguments, "--set", "simclr.projector_dim=16", "--batch-size", "4")
        added = set((tmp_path / "data").rglob("*")) - before
        assert [file.name for file in added] == ["held_out_subjects.json"]  # as the training itself would
    assert figures["setting"]["data"] == DATASET
    assert (figures["setting"]["batch_size"], figures["setting"]["accumulate"]) == (4, 2)
    assert sum(figures["breakdown"]["shares"].values()) == pytest.approx(1)
    assert figures["breakdown"]["shares"]["forward"] > figures["breakdown"]["shares"]["optimiser"]
    assert any("SimCLR" in note or "batch" in note for note in figures["notes"])


def test_regions_cost_nothing_unasked_and_tell_apart():
    from time import sleep

    from nnunet_ssl.trainers.profiling.spans import SpanTimer, span

    timer = SpanTimer(torch.device("cpu"))
    with span("forward"):
        pass
    assert timer.steps == []
    with timer.step():
        with span("forward"):
            sleep(0.03)
        with span("backward"):
            sleep(0.01)
        with span("forward"):
            sleep(0.03)
        sleep(0.02)
    with timer.step(), span("forward"):
        pass
    first, second = timer.steps
    assert first["forward"] == pytest.approx(0.06, rel=0.5)
    assert first["forward"] > first["rest"] > 0.015
    assert set(second) == {"forward", "rest"}
    with pytest.raises(KeyError), timer.step():
        raise KeyError  # a step that fails is not counted, and stops the watch
    with span("forward"):
        pass
    assert len(timer.steps) == 2


class _OneConvolution(nn.Module):
    """Stands for a method: 8 channels in and out, 3 x 3 x 3, on 8 x 8 x 8 voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(8, 8, 3, padding=1, bias=False)

    def forward(self, x):
        return self.conv(x).square().mean()


class _Step:
    """Stands for a trainer."""

    def __init__(self) -> None:
        from nnunet_ssl.trainers.device.compiling import Compiler

        self.network = _OneConvolution()
        self.compiler = Compiler(True, pytest.fail, backend=self._never)
        self.compiler.compile_forward(self.network)

    @staticmethod
    def _never(*_):
        raise AssertionError("compiled networks cannot be looked into")

    def train_step(self, batch):
        self.network(batch["image"]).backward()


def test_flops_of_a_known_network():
    from nnunet_ssl.trainers.profiling.peak_flops import count_flops

    step = _Step()
    forward = 2 * 27 * 8 * 8 * 8**3
    # Backward: the gradient of the weights only, for the image wants none.
    assert count_flops(step, {"image": torch.randn(1, 8, 8, 8, 8)}) == 2 * forward
    assert count_flops(step, {"image": torch.randn(1, 8, 8, 8, 8, requires_grad=True)}) == 3 * forward
    assert step.compiler.on


class _TokenStep:
    """Stands for the trainer of a transformer whose only block is dropped for two of four images."""

    def __init__(self, compiled: bool) -> None:
        from timm.models.eva import EvaBlock

        from nnunet_ssl.backbones.drop_path import drop_by_image, use_keys
        from nnunet_ssl.trainers.device.compiling import Compiler
        from nnunet_ssl.views.rng import ImageGenerator

        self.block = EvaBlock(24, 2, swiglu_mlp=True, scale_mlp=True, num_prefix_tokens=0, drop_path=0.5)
        paths = drop_by_image(self.block)
        seeds = (s for s in range(99) if self._kept(paths, ImageGenerator("cpu", s, range(4)).keys) == [2, 2])
        use_keys(paths, ImageGenerator("cpu", next(seeds), range(4)).keys)
        self.compiler = Compiler(compiled, pytest.fail, backend="eager")
        self.compiler.compile_forward(self.block)

    @staticmethod
    def _kept(paths, keys):
        from nnunet_ssl.backbones.drop_path import use_keys

        use_keys(paths, keys)
        return [len(path.kept(4)) for path in paths]

    def train_step(self, batch):
        self.block(batch["image"]).sum().backward()


def test_dropped_paths_count_where_they_are_computed():
    """Compiled code computes them, the same network without torch.compile leaves them out."""
    from nnunet_ssl.trainers.profiling.peak_flops import count_flops

    tokens = {"image": torch.randn(4, 5, 24, requires_grad=True)}
    assert count_flops(_TokenStep(compiled=True), tokens) == 2 * count_flops(_TokenStep(compiled=False), tokens)


def test_the_network_is_gone_before_the_device_is_measured(measured, tmp_path, monkeypatch):
    from nnunet_ssl.trainers.profiling import benchmark, measuring

    alive, real = [], measuring.started

    @contextmanager
    def remembered(*arguments):
        with real(*arguments) as trainer:
            alive.append(weakref.ref(trainer.network))
            yield trainer

    def ceiling(*_):
        assert [network() for network in alive] == [None]
        return 1e12

    monkeypatch.setattr(benchmark, "started", remembered)
    monkeypatch.setattr(benchmark, "matmul_peak_flops", ceiling)
    figures, _, _ = measured(tmp_path, "--backbone", "primus_tiny")
    assert figures["flops"]["matmul_peak_flops"] == 1e12


def test_attention_is_counted_on_this_device():
    from nnunet_ssl.trainers.profiling.peak_flops import flop_counter

    product = 2 * 2 * 16 * 16 * 6
    q = torch.randn(1, 2, 16, 6, requires_grad=True)
    with flop_counter() as counter:
        output = nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * product
    with flop_counter() as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 5 * product  # four, and the scores, which are computed again


def test_out_of_memory_names_the_batch_that_fits(measured, tmp_path, monkeypatch, capsys):
    from nnunet_ssl.trainers.loop import stepping

    real = stepping.run_batch

    def needs_memory(trainer, batch, stream, step):
        if len(batch["image"]) // trainer.settings.accumulate > 2:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        return real(trainer, batch, stream, step)

    monkeypatch.setattr(stepping, "run_batch", needs_memory)
    with pytest.raises(SystemExit):
        measured(tmp_path, "--backbone", "primus_tiny", "--batch-size", "8")
    message = capsys.readouterr().err
    assert "Out of memory with a batch of 8 at 32 x 32 x 32 voxels" in message
    assert "The largest that ran has 2: --batch-size 2, or 8 in micro-batches of 2: --set accumulate=4" in message
