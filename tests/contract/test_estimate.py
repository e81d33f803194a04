"""`nnUNetv2_pretrain --estimate` where steps can be measured: it counts, then measures, and keeps nothing."""

from __future__ import annotations

import json

import pytest

from nnunet_ssl.cli.pretrain import main
from nnunet_ssl.trainers.profiling import peak_flops


@pytest.mark.parametrize("kind", ["unet", "primus"])
def test_counted_and_measured(kind, preprocessed_dataset, plans_for, capsys, monkeypatch):
    monkeypatch.setitem(peak_flops.MATRIX, "cpu", 256)
    monkeypatch.setitem(peak_flops.CONVOLUTIONS, "cpu", ((2, 32, 16),))
    dataset = preprocessed_dataset / "preprocessed" / "Dataset777_Tiny"
    plans = plans_for(kind, {"mae": {"mask_block": 4}} if kind == "unet" else {})
    (dataset / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    main(["777", "-p", plans["plans_name"], "--estimate", "-device", "cpu", "-np", "1"])
    out = capsys.readouterr().out
    assert out.index("Memory, counted without running a step") < out.index("End to end")
    for text in (
        f"Counted for the plans {plans['plans_name']}",
        "this run, 2 per GPU",
        "not measured",
        "The whole run",
    ):
        assert text in out
    assert "Nothing was measured" not in out
    assert list((preprocessed_dataset / "results").rglob("*")) == []
