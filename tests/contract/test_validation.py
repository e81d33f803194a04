"""The held-out cases, one by one where that means something and in small groups where a loss compares or fuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_ssl.trainers.loop.validation import companions_of
from nnunet_ssl.trainers.pretraining import trainer_class


@pytest.fixture
def validated(make_trainer, plans_for, monkeypatch):
    """Function (method, held-out cases, all cases) -> (trainer, summary, log) of an untrained network's validation."""

    def run(method: str, held_out: list[int], cases: list[int]):
        trainer = make_trainer(trainer_class(method), plans_for("unet"))
        name = trainer.plans_manager.dataset_name
        split = [[f"{name}/tiny_{n:03d}" for n in numbers] for numbers in (cases, held_out)]
        trainer.do_split = lambda: (split[0], split[1])
        trainer.perform_actual_validation()
        summary = json.loads((Path(trainer.output_folder) / "validation/summary.json").read_text())
        assert len(list((Path(trainer.output_folder) / "validation").glob("*.png"))) == len(held_out)
        return trainer, summary, Path(trainer.log_file).read_text()

    return run


def test_compared_cases_are_seen_in_groups(validated):
    trainer, summary, log = validated("simclr", [0, 3], [0, 1, 2, 3])
    assert set(summary) == {"mean", "cases"}
    assert all(case["loss"] > 0.5 for case in summary["cases"].values())  # alone, a crop has no other to be told from
    assert summary["mean"]["loss"] == pytest.approx(sum(c["loss"] for c in summary["cases"].values()) / 2)
    assert len({case["loss"] for case in summary["cases"].values()}) == 2
    assert "nothing about the network" not in log
    # Two held-out cases are too few for a group of four, so training cases keep them company.
    companions = companions_of(trainer, ["a", "b"], ["a", "c", "d", "e"])
    assert companions == {"a": ["b", "c", "d"], "b": ["c", "d", "e"]}
    assert companions_of(trainer, list("abcde"), ["x"])["d"] == ["e", "a", "b"]


def test_a_case_is_fused_with_another(validated):
    trainer, summary, _ = validated("volume_fusion", [2], [0, 1, 2])
    assert companions_of(trainer, ["a"], ["a", "b"]) == {"a": ["b"]}
    assert companions_of(trainer, ["a", "b", "c"], []) == {"a": ["b"], "b": ["c"], "c": ["a"]}
    assert len(summary["cases"]) == 1


@pytest.mark.parametrize("method", ["mae", "simclr"])
def test_nothing_is_compiled_for_them(method, make_trainer, plans_for, monkeypatch):
    called = []
    monkeypatch.setattr(torch, "compile", lambda function, **_options: lambda *inputs: called.append(function))
    trainer = make_trainer(trainer_class(method), plans_for("unet"))
    monkeypatch.setattr(trainer, "_do_i_compile", lambda: True)
    trainer.perform_actual_validation()
    assert not called
    assert trainer.compiler.on


@pytest.mark.parametrize("method", ["simclr", "volume_fusion", "consistent_views"])
def test_a_single_image_works_and_a_message_says_what_it_is_worth(method, validated):
    _, summary, log = validated(method, [0], [0])
    assert len(summary["cases"]) == 1
    assert "there is only one" in log


def test_single_cases_need_no_company(validated):
    trainer, summary, log = validated("mae", [0], [0])
    assert "there is only one" not in log
    assert companions_of(trainer, ["a", "b"], ["c"]) == {"a": [], "b": []}
    assert torch.isfinite(torch.tensor(summary["mean"]["loss"]))
