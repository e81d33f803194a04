"""The tiny preprocessed data set of tests/contract."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

CONTRACT = Path(__file__).resolve().parents[1] / "contract"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("conftest_of_contract", CONTRACT / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_contract = _load()
tiny_training = _contract.tiny_training
preprocessed_dataset, plans_for, dataset_json = (
    _contract.preprocessed_dataset,
    _contract.plans_for,
    _contract.dataset_json,
)
make_trainer = _contract.make_trainer
