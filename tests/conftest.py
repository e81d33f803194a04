"""What tests of every room share: real data, nnU-Net's folders, fresh processes, tiny data sets."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """pytest-randomly shall choose the order alone: it gives every run other numbers, and torch those of the test before.

    The folders of whoever runs the tests are none of their business.
    """
    config.option.randomly_reset_seed = False
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.pop(name, None)


def seed_everything() -> None:
    """What a test draws without a generator of its own does not depend on its neighbours."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:  # which not every test needs
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before the fixtures are made, which other tests may have made already."""
    seed_everything()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """After they are made."""
    seed_everything()


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A run in this process sets the number of torch's threads; the next test shall not round with that many."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    yield
    if torch is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with real images, beside the checkout (see its README), or with made-up twins of them where they are not there."""
    folder = CHECKOUT.parent / "shared" / "data"
    if folder.is_dir() and not os.environ.get("NNUNET_SSL_TEST_TWINS"):
        return folder
    from scan_twins import write_twins

    return write_twins(tmp_path_factory.mktemp("twins"))


@pytest.fixture
def nnunet_folders(tmp_path: Path) -> dict[str, str]:
    """nnU-Net's three folders, made and empty, as environment variables for a fresh process."""
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir()
    return folders


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Function that runs a console script of this environment ("python" included) in a fresh process.

    `run_command(args, env, check=True, cwd=None)`: `env` is added to this process's environment, a value of None takes
    a variable away. The result has stdout and stderr as text; with `check`, a failure fails the test and shows both.
    """

    def run(
        args: Sequence[str | Path],
        env: Mapping[str, str | None] | None = None,
        check: bool = True,
        cwd: str | Path | None = None,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        program = sys.executable if args[0] == "python" else str(Path(sys.executable).parent / args[0])
        changed = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ, **(env or {})}
        environment = {name: value for name, value in changed.items() if value is not None}
        command = [program, *map(str, args[1:])]
        result = subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and result.returncode != 0:
            shown = " ".join(map(str, args))
            pytest.fail(f"{shown}: exit code {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}")
        return result

    return run


@pytest.fixture(scope="session")
def tiny_dataset() -> Callable[..., Path]:
    """Function that writes a tiny nnU-Net data set of noise with a bright ball, labelled where asked for.

    `tiny_dataset(raw, dataset_id=900, num_cases=4, num_labelled=4, channels=1, shape=(20, 24, 28))` returns its folder.
    The first `num_labelled` cases have a label file; spacing is 1 mm.
    """

    def make(
        raw: str | Path,
        dataset_id: int = 900,
        num_cases: int = 4,
        num_labelled: int | None = None,
        channels: int = 1,
        shape: tuple[int, ...] = (20, 24, 28),
    ) -> Path:
        import SimpleITK as sitk

        folder = Path(raw) / f"Dataset{dataset_id:03d}_Tiny"
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True)
        generator = np.random.default_rng(dataset_id)
        num_labelled = num_cases if num_labelled is None else num_labelled
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
        for number in range(num_cases):
            centre = generator.uniform(-0.3, 0.3, len(shape))
            ball = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < 0.2
            for channel in range(channels):
                image = sitk.GetImageFromArray((generator.normal(size=shape) + 3 * ball).astype(np.float32))
                sitk.WriteImage(image, str(folder / "imagesTr" / f"tiny_{number:02d}_{channel:04d}.nii.gz"))
            if number < num_labelled:
                label = sitk.GetImageFromArray(ball.astype(np.uint8))
                sitk.WriteImage(label, str(folder / "labelsTr" / f"tiny_{number:02d}.nii.gz"))
        description = {
            "channel_names": {str(c): "MR" for c in range(channels)},
            "labels": {"background": 0, "ball": 1},
            "numTraining": num_cases,
            "file_ending": ".nii.gz",
        }
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder

    return make


@pytest.fixture
def hub_server() -> Iterator[Any]:
    """A stand-in for the Hugging Face Hub (tests/hub_server.py), for fresh processes with HF_ENDPOINT=its endpoint."""
    spec = importlib.util.spec_from_file_location("hub_server", CHECKOUT / "tests" / "hub_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    server = module.HubServer()
    yield server
    server.stop()


@pytest.fixture
def hub(hub_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, with this process's huggingface_hub turned to it: own cache, nobody logged in, no retries of hours."""
    from huggingface_hub import constants

    endpoint = hub_server.endpoint
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub_cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no_token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return hub_server
