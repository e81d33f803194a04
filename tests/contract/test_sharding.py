"""Sharded states: the same training, the same files, and a part of the memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.distributed import fsdp

from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.cli.flag_settings import flags_as_settings
from nnunet_ssl.cli.pretrain import main
from nnunet_ssl.cli.pretrain_flags import build_parser
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.settings.blocks import PretrainSettings, read_config
from nnunet_ssl.trainers.distributed.sharding import require_sharding
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

sys.path.insert(0, str(Path(__file__).parent))  # child processes import it by name as well
import trained_in_shards
from trained_in_shards import FINAL, FIRST

# Two images per process, so that each can be taken in two parts. AdamW blows up the smallest difference: a small rate.
SHORT = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "warmup_epochs": 0,
    "batch_size": 4,
    "num_val_iterations_per_epoch": 1,
}
SGD, ADAMW = {**SHORT, "optimizer": "sgd", "initial_lr": 1e-2}, {**SHORT, "optimizer": "adamw", "initial_lr": 1e-4}


@pytest.fixture
def run(preprocessed_dataset, dataset_json, tmp_path):
    """Function (label, number of processes, jobs) that does the jobs; see `trained_in_shards.work`."""
    environment = {k: v for k, v in os.environ.items() if k.startswith("nnUNet_")}
    context = multiprocessing.get_context("forkserver")  # imports everything once, not once per process
    context.set_forkserver_preload(["trained_in_shards"])

    def start(label: str, world: int, jobs: list) -> None:
        arguments = (world, label, str(tmp_path), environment, jobs, deepcopy(dataset_json))
        started = [context.Process(target=trained_in_shards.work, args=(rank, *arguments)) for rank in range(world)]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=200)
            assert process.exitcode == 0

    return start


def layout(value):
    """A checkpoint's structure: types, shapes and keys, without the values."""
    if isinstance(value, torch.Tensor):
        return type(value).__name__, str(value.dtype), tuple(value.shape)
    if isinstance(value, dict):
        return {k: layout(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [layout(v) for v in value]
    return type(value).__name__


def tensors(checkpoint) -> dict[str, torch.Tensor]:
    """Weights, heads and what the optimiser remembers, by name."""
    states = checkpoint["optimizer_state"]["state"]
    return {
        **checkpoint["network_weights"],
        **checkpoint["ssl"]["heads"],
        **{f"teacher.{k}": v for k, v in checkpoint["ssl"].get("teacher", {}).items()},
        **{f"optimiser.{i}.{k}": v for i, state in states.items() for k, v in state.items()},
    }


def assert_same(found, expected, start, tolerance: float) -> None:
    """Two final checkpoints agree, measured by how far training has moved the weights since `start`."""
    assert layout({**found, "init_args": 0}) == layout({**expected, "init_args": 0})  # which hold the plans
    assert found["optimizer_state"]["param_groups"] == expected["optimizer_state"]["param_groups"]
    losses, expected_losses = (c["logging"]["train_losses"] for c in (found, expected))
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    found, expected, start = tensors(found), tensors(expected), tensors(start)
    for kind in {
        k.rpartition("optimiser.")[1] and k.rpartition(".")[2] for k in expected
    }:  # "": weights; momenta, steps
        names = [k for k in expected if k.endswith(kind) and k.startswith("optimiser.") == bool(kind)]
        moved = max((expected[k] - start[k]).abs().max() for k in names)
        apart = max((expected[k] - found[k]).abs().max() for k in names)
        assert moved > (1e-5 if not kind else 0), kind
        assert apart < tolerance * moved, (kind, apart, moved)


@pytest.mark.slow
def test_sharded_processes_train_what_one_trains_and_their_files_are_the_same(run, plans_for, tmp_path):
    cases = {
        "mae-unet": ("mae", "unet", SGD),
        "mae-primus": ("mae", "primus", ADAMW),
        "simclr-primus": ("simclr", "primus", {**SGD, "accumulate": 2}),
        "self_distillation-unet": ("self_distillation", "unet", {**SGD, "self_distillation": {"momentum": 0.5}}),
    }

    def job(name: str, what: str, shard: bool, into: str | None = None):
        method, backbone, ssl = cases[name]
        return into or name, method, plans_for(backbone, {**ssl, "shard": shard}), what

    run("alone", 1, [job(name, "train", shard=False) for name in cases])
    sharded = [
        *(job(name, "train", shard=True) for name in cases),
        ("recomputed", "mae", plans_for("unet", {**SGD, "shard": True, "recompute": True}), "train"),
        job("mae-primus", f"continue:alone/mae-primus/{FIRST}", shard=True, into="continued"),
        job("mae-unet", "stop", shard=True, into="stopped"),
        job("mae-unet", "continue:sharded/stopped/checkpoint_latest.pth", shard=True, into="stopped"),
        job("mae-unet", f"load:alone/mae-unet/{FINAL}", shard=True, into="loaded"),
    ]
    run("sharded", 2, sharded)
    run("after", 1, [job("mae-primus", f"continue:sharded/mae-primus/{FIRST}", shard=False)])

    def read(*place: str):
        return read_checkpoint(tmp_path.joinpath(*place))

    for name in cases:
        first, expected = read("alone", name, FIRST), read("alone", name, FINAL)
        assert_same(read("sharded", name, FINAL), expected, first, tolerance=0.01)
        assert (tmp_path / "sharded" / name / FINAL).stat().st_size == pytest.approx(
            (tmp_path / "alone" / name / FINAL).stat().st_size, rel=0.01
        )  # weights with several names are stored once
        summaries = [
            json.loads((tmp_path / r / name / "validation/summary.json").read_text()) for r in ("alone", "sharded")
        ]
        assert summaries[1]["mean"] == pytest.approx(summaries[0]["mean"], rel=1e-2)
    first, expected = read("alone", "mae-primus", FIRST), read("alone", "mae-primus", FINAL)
    assert_same(read("sharded", "continued", FINAL), expected, first, tolerance=0.01)
    assert_same(read("after", "mae-primus", FINAL), expected, first, tolerance=0.01)
    first, expected = read("alone", "mae-unet", FIRST), read("alone", "mae-unet", FINAL)
    assert_same(read("sharded", "recomputed", FINAL), expected, first, tolerance=0.01)
    uninterrupted, stopped = (tensors(read("sharded", name, FINAL)) for name in ("mae-unet", "stopped"))
    assert all(torch.equal(stopped[k], v) for k, v in uninterrupted.items())
    loaded = torch.load(tmp_path / "sharded" / "loaded" / "loaded.pth")["weights"]
    weights = read("alone", "mae-unet", FINAL)["network_weights"]
    assert all(torch.equal(loaded[k], v) for k, v in weights.items() if ".seg_layers." not in k)
    for name in cases:
        per_process = [json.loads((tmp_path / "sharded" / name / f"bytes_{rank}.json").read_text()) for rank in (0, 1)]
        for kind in ("weights", "optimiser"):
            own, of_the_whole = zip(*(process[kind] for process in per_process), strict=True)
            assert of_the_whole[0] == of_the_whole[1]
            assert max(own) < 0.55 * of_the_whole[0], (name, kind)
            assert sum(own) >= of_the_whole[0]


def test_one_process_cannot_shard(make_trainer, plans_for):
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", {"shard": True}))
    with pytest.raises(RuntimeError, match=r"--num-gpus N or torchrun.*-num_gpus N.*--no-shard"):
        trainer.initialize()


def test_command_says_so_before_it_prepares_anything(preprocessed_dataset, capsys):
    with pytest.raises(SystemExit) as code:
        main(["4", "-device", "cpu", "--shard"])
    assert code.value.code == 1
    assert "--num-gpus N" in capsys.readouterr().err


def test_old_torch_is_named(monkeypatch):
    monkeypatch.delattr(fsdp, "fully_shard")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(RuntimeError, match=r"torch 2\.6 or newer, this is 2\.5\.1.*--no-shard"):
        require_sharding(4)


def test_flag_is_a_setting_and_can_be_taken_back():
    parser = build_parser()
    assert flags_as_settings(parser.parse_args(["4", "--shard"])) == {"shard": True}
    assert flags_as_settings(parser.parse_args(["4", "--no-shard"])) == {"shard": False}
    with pytest.raises(SettingsError, match="shard is true or false, found 2"):
        read_config(PretrainSettings, {"shard": 2}, "ssl")
