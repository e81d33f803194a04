"""The worked example of docs/tutorials/own_task.md: a method in a package of its own, installed and used by real commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
from tutorial_paths import CHECKOUT, blocks, paths

EXAMPLE = CHECKOUT / "examples" / "denoising"
PAGE = CHECKOUT / "docs" / "tutorials" / "own_task.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory, run_command) -> str:
    """A folder with the example installed into it, as PYTHONPATH wants it."""
    folder = tmp_path_factory.mktemp("example")
    source = folder / "source"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    run_command(["python", "-c", build], cwd=source)
    target = folder / "site"
    with zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as wheel:
        wheel.extractall(target)  # what pip does with a wheel that holds nothing but Python
    return os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


@pytest.mark.slow
def test_it_passes_the_contract(installed, run_command, tmp_path):
    """With the one line of its own tests, as its author runs them: nothing of our tests' fixtures is there."""
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    quick = ["-p", "no:randomly", "-p", "no:cacheprovider", "-q", "--rootdir", tmp_path]
    done = run_command(["python", "-m", "pytest", *quick, tmp_path / "tests"], {"PYTHONPATH": installed}, cwd=tmp_path)
    assert "21 passed" in done.stdout


@pytest.mark.slow
def test_pretrains_by_the_command(installed, nnunet_folders, run_command, tiny_dataset):
    """The tutorial's, only shorter; the fixture has done what its `pip install` does."""
    install, train = paths()["task"][0].splitlines()
    assert install == "pip install -e examples/denoising"
    tiny_dataset(nnunet_folders["nnUNet_raw"], 4, num_cases=4, num_labelled=0)
    environment = {**nnunet_folders, "PYTHONPATH": installed, "nnUNet_n_proc_DA": "1"}
    short = ["--epochs", "1", "--iterations-per-epoch", "2", "--val-iterations-per-epoch", "1", "-np", "1"]
    done = run_command([*shlex.split(train), *short], environment)
    assert "denoising: noise=0.5" in done.stdout
    results = Path(nnunet_folders["nnUNet_results"]) / "Dataset004_Tiny"
    assert len(list(results.glob("SSLDenoisingTrainer__*/fold_all/validation/*.png"))) >= 1


def test_the_tutorial_shows_the_example_as_it_is():
    """All of it, in its order, between the words; and the whole of its tests."""
    code = blocks(PAGE.read_text(), "python").split()
    file, tests = (EXAMPLE / name for name in ("denoising.py", "tests/test_denoising.py"))
    assert code == file.read_text().split() + tests.read_text().partition('"""\n\n')[2].split()
    assert blocks(PAGE.read_text(), "toml") in (EXAMPLE / "pyproject.toml").read_text()


EVERYWHERE = """
import json, pickle, runpy, sys
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
from nnunet_ssl.cli.nnunet_words import method_of_trainer
from nnunet_ssl.integration.class_lookup import names_of
from nnunet_ssl.integration.ext_trainers import nnunet_ssl_trainers
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.trainers.pretraining import trainer_class

trainer = find("SSLDenoisingTrainer")
table = runpy.run_path(sys.argv[1])["table"](get_method("denoising").Config)
print(json.dumps({
    "trainer of nnU-Net": trainer.method_name,
    "the same wherever it is asked for": trainer is trainer_class("denoising") is nnunet_ssl_trainers.SSLDenoisingTrainer,
    "pickled": pickle.loads(pickle.dumps(trainer)) is trainer,
    "did you mean": "SSLDenoisingTrainer" in names_of("nnunetv2.trainers"),
    "--method": "denoising" in method_names(),
    "-tr": method_of_trainer("SSLDenoisingTrainer", method_names()) == "denoising",
    "settings table": [line for line in table.splitlines() if line.startswith("| `noise`")],
}))
"""


def test_one_entry_point_is_enough_to_be_found_everywhere(installed, run_command):
    """One file and one line: no trainer, no list in this repository knows the task."""
    script = ["python", "-c", EVERYWHERE, CHECKOUT / "docs" / "make_settings.py"]
    found = json.loads(run_command(script, {"PYTHONPATH": installed}).stdout.splitlines()[-1])
    (row,) = found.pop("settings table")
    assert "a number > 0" in row
    assert "standard deviation" in row
    assert found.pop("trainer of nnU-Net") == "denoising"
    assert set(found.values()) == {True}
