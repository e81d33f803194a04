"""Odd files at the doors of data, see tests/drills/odd_files.py: all of its situations, and files changed at random."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_ssl.corpus.reader import CorpusReader
from nnunet_ssl.corpus.reading import damage
from nnunet_ssl.errors import BadFile
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.planners.fingerprint import analyse

DRILL = Path(__file__).resolve().parents[1] / "drills" / "odd_files.py"
SEED, MUTATIONS = 20_241, 150


@pytest.fixture(scope="module")
def drill() -> Any:
    spec = importlib.util.spec_from_file_location("odd_files", DRILL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_odd_file_ends_in_a_line_that_names_it(drill: Any, tmp_path: Path) -> None:
    wrong, count = [], 0
    for number, (name, source, named, expected) in enumerate(drill.situations(tmp_path)):
        raw = tmp_path / f"raw{number}"
        raw.mkdir()
        with drill.time_limit(drill.SECONDS):
            found = drill.fault(name, drill.imported(source, raw), named, expected)
        count += 1
        wrong += [f"{name}: {found}"] if found else []
    assert count > 50
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["image: pipe", "table: long cell", "dataset.json: deep list"])
def test_through_the_real_command(drill: Any, tmp_path: Path, name: str) -> None:
    source, named, expected = next(s[1:] for s in drill.situations(tmp_path) if s[0] == name)
    (tmp_path / "raw").mkdir()
    code, said = drill.through_the_command(source, tmp_path / "raw")
    assert code == 1
    assert "Traceback" not in said
    assert drill.fault(name, said, named, expected) is None


def test_tables_and_json_changed_at_random(drill: Any, tmp_path: Path) -> None:
    (tmp_path / "fuzz").mkdir()
    assert drill.fuzz(tmp_path / "fuzz", SEED, MUTATIONS) == []


def test_odd_files_in_a_data_set_are_left_out_one_by_one(drill: Any, tmp_path: Path) -> None:
    """In imagesTr, which no import has looked at."""
    good = drill.image(tmp_path / "good_0000.nii.gz")
    with drill.time_limit(drill.SECONDS):
        for name, (make, expected) in drill.NO_IMAGES.items():
            odd = tmp_path / f"{name}_0000.nii.gz"
            make(odd)
            assert expected in str(damage(str(odd))), name
            assert expected in str(analyse([str(odd)], None, CorpusReader, 10, 1, None)), name
    assert isinstance(analyse([str(good)], None, CorpusReader, 10, 1, None), dict)


def test_json_is_read_with_limits(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": [1, {"b": null}]}')
    assert read_json(path) == {"a": [1, {"b": None}]}
    with pytest.raises(BadFile, match=r"x\.json: 26 bytes, at most 10"):
        read_json(path, max_bytes=10)
    path.write_text("[" * 101 + "]" * 101)
    assert len(read_json(path)) == 1
    path.write_text("[" * 102 + "]" * 102)
    with pytest.raises(BadFile, match="nested more than 100 deep"):
        read_json(path)
    os.mkfifo(tmp_path / "pipe.json")
    for name, reason in (("pipe.json", "a pipe"), ("gone.json", "no such file"), (".", "a folder")):
        with pytest.raises(BadFile, match=reason):
            read_json(tmp_path / name)
    np.testing.assert_equal(read_json_text(tmp_path, "[NaN]"), [np.nan])


def read_json_text(folder: Path, text: str) -> Any:
    (folder / "text.json").write_text(text)
    return read_json(folder / "text.json")
