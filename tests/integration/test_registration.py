"""A third-party plugin in fresh processes: nnU-Net's real commands find its classes, children too, with autoload off."""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

AUTOLOAD_OFF = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}

ENTRY_POINTS = """
[console_scripts]
nnUNetv2_tiny_spawn = tiny_plugin.spawn:main
[nnunetv2.trainers]
TinyTrainer = tiny_plugin.trainer:TinyTrainer
BrokenTrainer = tiny_plugin.broken:BrokenTrainer
nnUNetTrainer = tiny_plugin.trainer:TinyTrainer
[nnunetv2.planners]
TinyPlanner = tiny_plugin.planner:TinyPlanner
[nnunetv2.preprocessors]
TinyPreprocessor = tiny_plugin.preprocessor:TinyPreprocessor
[nnunetv2.normalization]
TinyNormalization = tiny_plugin.preprocessor:TinyNormalization
[nnunetv2.resampling]
tiny_resampling = tiny_plugin.preprocessor:tiny_resampling
"""

MODULES = {
    "trainer": """
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        class TinyTrainer(nnUNetTrainer):
            pass
        """,
    "broken": "import a_dependency_that_is_not_there",
    "planner": """
        from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
        class TinyPlanner(ExperimentPlanner):
            def __init__(self, *args, **kwargs):
                raise SystemExit("TinyPlanner was found")
        """,
    "preprocessor": """
        from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        class TinyPreprocessor(DefaultPreprocessor):
            pass
        class TinyNormalization(ZScoreNormalization):
            pass
        def tiny_resampling(data, new_shape, current_spacing, new_spacing):
            return data
        """,
    # As nnU-Net's preprocessing does: the workers are spawned, unpickle a plugin's object, and look up names themselves.
    "spawn": """
        import multiprocessing
        def look_up(preprocessor):
            from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
            return type(preprocessor).__name__, recursive_find_resampling_fn_by_name("tiny_resampling").__module__
        def main():
            from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
            name = {"architecture": {}, "preprocessor_name": "TinyPreprocessor"}
            preprocessor = ConfigurationManager(name).preprocessor_class()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print("child:", *pool.apply(look_up, (preprocessor,)))
        """,
}

LOOKUPS = """
import torch, json, sys
early = sorted({name.split(".")[0] for name in sys.modules} & {"nnunetv2", "batchgenerators", "timm", "tiny_plugin"})
from os.path import join
import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find_trainer

def described(name, *folders):
    found = find(join(nnunetv2.__path__[0], *folders), name, ".".join(("nnunetv2", *folders)))
    return None if found is None else f"{found.__module__}.{found.__name__}"

def trainer(name):
    try:
        found = find_trainer(name)
        return f"{found.__module__}.{found.__name__}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

if __name__ == "__main__":
    from tiny_plugin import spawn
    spawn.main()
    print(json.dumps({
        "early": early,
        **{name: trainer(name) for name in ("TinyTrainer", "BrokenTrainer", "nnUNetTrainer", "NoSuchTrainer")},
        "TinyPlanner": described("TinyPlanner", "experiment_planning"),
        "ExperimentPlanner": described("ExperimentPlanner", "experiment_planning"),
        "TinyPreprocessor": described("TinyPreprocessor", "preprocessing"),
        "TinyNormalization": described("TinyNormalization", "preprocessing", "normalization"),
        "tiny_resampling": described("tiny_resampling", "preprocessing", "resampling"),
        "a planner among normalizations": described("TinyPlanner", "preprocessing", "normalization"),
    }))
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which another package with classes for nnU-Net is installed."""
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "tiny_plugin").mkdir()
    for name, body in MODULES.items():
        (folder / "tiny_plugin" / f"{name}.py").write_text(textwrap.dedent(body))
    metadata = folder / "tiny_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def looked_up(plugin: dict[str, str], run_command: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process that only imports torch and nnU-Net finds, and its output."""
    script = tmp_path_factory.mktemp("lookups") / "lookups.py"
    script.write_text(LOOKUPS)
    result = run_command(["python", script], plugin)
    return {**json.loads(result.stdout.splitlines()[-1]), "stdout": result.stdout, "stderr": result.stderr}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TinyTrainer", "tiny_plugin.trainer.TinyTrainer"),
        ("TinyPlanner", "tiny_plugin.planner.TinyPlanner"),
        ("TinyPreprocessor", "tiny_plugin.preprocessor.TinyPreprocessor"),
        ("TinyNormalization", "tiny_plugin.preprocessor.TinyNormalization"),
        ("tiny_resampling", "tiny_plugin.preprocessor.tiny_resampling"),
        ("nnUNetTrainer", "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer"),
        (
            "ExperimentPlanner",
            "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner.ExperimentPlanner",
        ),
        ("a planner among normalizations", None),
    ],
)
def test_what_is_found(looked_up: dict[str, Any], name: str, expected: str | None) -> None:
    assert looked_up[name] == expected


def test_importing_torch_imports_nothing_of_nnunet(looked_up: dict[str, Any]) -> None:
    assert looked_up["early"] == []


def test_a_broken_plugin_shows_its_own_error(looked_up: dict[str, Any]) -> None:
    assert looked_up["BrokenTrainer"] == "ModuleNotFoundError: No module named 'a_dependency_that_is_not_there'"
    assert "BrokenTrainer is registered by tiny-plugin (tiny_plugin.broken:BrokenTrainer)" in looked_up["stderr"]


def test_an_unknown_name_gets_nnunets_own_error(looked_up: dict[str, Any]) -> None:
    assert looked_up["NoSuchTrainer"].startswith("RuntimeError: Could not find requested nnunet trainer NoSuchTrainer")


def test_nnunetv2_train_finds_the_trainer(plugin: dict[str, str], run_command: Run, nnunet_folders: Any) -> None:
    command = ["nnUNetv2_train", "999", "3d_fullres", "0", "-tr", "TinyTrainer", "-device", "cpu"]
    result = run_command(command, {**plugin, **nnunet_folders}, check=False)
    assert "Could not find requested nnunet trainer" not in result.stderr
    assert "Could not find a dataset with the ID 999" in result.stderr


def test_ext_trainer_folder_finds_the_trainer_with_autoload_off(
    plugin: dict[str, str], run_command: Run, nnunet_folders: Any
) -> None:
    folder = run_command(["nnunet-ssl", "--ext-trainer-folder"]).stdout.strip()
    command = ["nnUNetv2_train", "999", "3d_fullres", "0", "-tr", "TinyTrainer", "-device", "cpu"]
    environment = {**plugin, **nnunet_folders, **AUTOLOAD_OFF, "nnUNet_extTrainer": folder}
    result = run_command(command, environment, check=False)
    assert f"Using trainer 'TinyTrainer' from: {folder}" in result.stdout
    assert "Could not find a dataset with the ID 999" in result.stderr


@pytest.mark.parametrize(
    ("prefix", "environment", "message"),
    [
        ([], {}, "TinyPlanner was found"),
        ([], AUTOLOAD_OFF, "'NoneType' object is not callable"),
        (["nnunet-ssl"], AUTOLOAD_OFF, "TinyPlanner was found"),
    ],
)
def test_nnunetv2_plan_experiment(
    plugin: dict[str, str], run_command: Run, prefix: list[str], environment: dict[str, str], message: str
) -> None:
    command = [*prefix, "nnUNetv2_plan_experiment", "-d", "999", "-pl", "TinyPlanner"]
    assert message in run_command(command, {**plugin, **environment}, check=False).stderr


@pytest.mark.parametrize("wrapper", [["nnunet-ssl"], ["python", "-m", "nnunet_ssl.run"]])
def test_spawned_workers_under_the_wrapper_with_autoload_off(
    plugin: dict[str, str], run_command: Run, wrapper: list[str]
) -> None:
    result = run_command([*wrapper, "nnUNetv2_tiny_spawn"], {**plugin, **AUTOLOAD_OFF})
    assert "child: TinyPreprocessor tiny_plugin.preprocessor" in result.stdout


def test_spawned_workers_find_it_too(looked_up: dict[str, Any]) -> None:
    assert "child: TinyPreprocessor tiny_plugin.preprocessor" in looked_up["stdout"]


def test_torch_imports_with_warnings_as_errors(run_command: Run) -> None:
    code = "import torch, sys; print('nnunet_ssl' in sys.modules)"
    result = run_command(["python", "-W", "error", "-c", code])
    assert (result.stdout.strip(), result.stderr) == ("True", "")


def test_wrapper_refuses_and_explains(run_command: Run) -> None:
    result = run_command(["nnunet-ssl", "nnUNetv2_trian"], check=False)
    assert result.returncode == 2
    assert "there is no command nnUNetv2_trian. Did you mean nnUNetv2_train?" in result.stderr
    assert "nnUNetv2_train 4 3d_fullres all -tr SSLMAETrainer" in run_command(["nnunet-ssl", "--help"]).stdout


def test_doctor(plugin: dict[str, str], run_command: Run, nnunet_folders: dict[str, str]) -> None:
    environment = {**plugin, **nnunet_folders, "nnUNet_results": "/does/not/exist"}
    result = run_command(["nnunet-ssl", "doctor"], environment, check=False)
    assert result.returncode == 1
    assert "ok       nnU-Net's commands find the plugins by themselves" in result.stdout
    registered = "TinyTrainer, TinyPlanner, TinyPreprocessor, TinyNormalization, tiny_resampling"
    assert f"tiny-plugin registers {registered}" in result.stdout
    assert "No module named 'a_dependency_that_is_not_there'" in result.stdout
    assert "nnUNetTrainer (nnunetv2.trainers, registered by tiny-plugin) is called TinyTrainer" in result.stdout
    assert "PROBLEM  nnUNet_results=/does/not/exist does not exist" in result.stdout
    assert "mkdir -p /does/not/exist" in result.stdout


def test_nnunets_own_tests_pass_with_the_plugin(run_command: Run, tmp_path: Path) -> None:
    """nnU-Net ships tests of its class look-up and paths; they must not notice us."""
    import nnunetv2

    folder = Path(nnunetv2.__path__[0]) / "tests"
    if not folder.is_dir():
        pytest.skip("this release of nnU-Net ships no tests")
    done = run_command(["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", folder], cwd=tmp_path)
    assert " passed" in done.stdout
