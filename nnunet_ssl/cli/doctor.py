"""nnunet-ssl doctor: is everything in place, and if not, what to type."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import Requirement

from nnunet_ssl.cli.pipes import until_nobody_reads
from nnunet_ssl.cli.probe import probe
from nnunet_ssl.integration.nnunet_version import nnunet_version
from nnunet_ssl.integration.torchvision_build import CURE, is_mismatch

PACKAGES = ("nnunet_ssl", "nnunetv2", "torch", "torchvision", "timm", "dynamic_network_architectures")
BOUNDING = ("nnunet_ssl", "nnunetv2", "dynamic_network_architectures")  # whose bounds matter
OLDEST = {"nnunetv2": (2, 8), "torch": (2, 5)}
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
TIMEOUT = 600  # seconds; importing everything from a slow network drive takes minutes


@dataclass(frozen=True)
class Finding:
    """One line of the result; `cure` says what to do when `ok` is False."""

    ok: bool
    what: str
    cure: str = ""


def check_versions() -> Iterator[Finding]:
    """Python and the packages that matter."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding(sys.version_info >= (3, 10), f"Python {python} ({sys.executable})", "Python 3.10 or newer is needed.")
    for package in PACKAGES:
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Finding(False, f"{package} is not installed", "pip install nnunet_ssl brings all it needs.")
            continue
        oldest = OLDEST.get(package, ())
        numbers = tuple(int(n) for n in installed.split("+")[0].split(".")[:2] if n.isdigit())
        wanted = ".".join(map(str, oldest))
        yield Finding(
            numbers >= oldest,
            f"{package} {nnunet_version() if package == 'nnunetv2' and numbers >= oldest else installed}",
            f"pip install --upgrade '{package}>={wanted}'" if oldest else "",
        )


def check_bounds() -> Iterator[Finding]:
    """What the packages allow of each other's versions; `pip install --upgrade timm` breaks it with a warning at most."""
    bad: dict[str, Finding] = {}
    for package in BOUNDING:
        with suppress(PackageNotFoundError):  # told above
            for need in map(Requirement, requires(package) or ()):
                with suppress(PackageNotFoundError):
                    found, extra = version(need.name), need.marker is not None and "extra" in str(need.marker)
                    if not extra and not need.specifier.contains(found, prereleases=True):
                        cure = f"pip install {shlex.quote(f'{need.name}{need.specifier}')}"
                        bad[need.name] = Finding(
                            False, f"{need.name} {found} is not what {package} allows ({need.specifier})", cure
                        )
    yield from bad.values() or (Finding(True, "they fit each other"),)


def run_probe() -> tuple[dict[str, Any] | None, str]:
    """Findings of a fresh process, None when it died, and what it wrote to stderr."""
    source = f"{inspect.getsource(probe)}\nprobe()\n"
    try:
        # In the scripts folder `-c` sees the sys.path of nnU-Net's commands, whatever lies in the current folder.
        result = subprocess.run(
            [sys.executable, "-c", source],
            cwd=sysconfig.get_path("scripts"),
            env=absolute_python_path(os.environ),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        return json.loads(result.stdout.strip().splitlines()[-1]), result.stderr
    except subprocess.TimeoutExpired:
        return None, f"It did not end within {TIMEOUT} s."
    except (IndexError, json.JSONDecodeError):
        return None, result.stderr or f"exit code {result.returncode}"


def absolute_python_path(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with a PYTHONPATH that means the same in every folder."""
    paths = [os.path.abspath(p) for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)} if paths else dict(environment)


def check_fresh_process() -> Iterator[Finding]:
    """What nnU-Net's commands will meet: torch, the registration, the device, the plugins."""
    found, stderr = run_probe()
    if found is None:
        yield Finding(False, "a fresh Python process that imports torch and nnU-Net died", last_lines(stderr))
        return
    yield from check_imports(found["errors"])
    if "hook" not in found:
        return
    yield check_hook(found["hook"])
    yield from check_device(found)
    yield from check_plugins(found["plugins"])


def check_imports(errors: Mapping[str, str]) -> Iterator[Finding]:
    """Packages that are there and cannot be imported."""
    mismatch = any(is_mismatch(RuntimeError(message)) for message in errors.values())
    if mismatch:
        yield Finding(False, "torch and torchvision do not fit: operator torchvision::nms does not exist", CURE)
    for name, message in errors.items():
        if name == "torch" and "Failed to load the backend extension" in message:
            cure = (
                "A package registered for torch's plugin loading and cannot be imported any more, e.g. because its "
                f"source folder was moved. pip uninstall it or install it again; until then, export {AUTOLOAD}=0."
            )
        else:
            cure = f"pip install --force-reinstall {name.partition('.')[0]}"
        if not (mismatch and name in ("torchvision", "timm")):
            yield Finding(False, f"import {name} fails: {message.splitlines()[0]}", cure)


def check_hook(active: bool) -> Finding:
    """Whether nnU-Net's own commands find the plugins by themselves."""
    if active:
        return Finding(True, "nnU-Net's commands find the plugins by themselves")
    if os.environ.get(AUTOLOAD) == "0":
        cure = f"unset {AUTOLOAD}, or type nnunet-ssl before every command: nnunet-ssl nnUNetv2_train ..."
    else:
        cure = "pip install nnunet_ssl into this environment (pip install -e . from a checkout)."
    return Finding(False, "nnU-Net's commands do not find the plugins", cure)


def check_device(found: Mapping[str, Any]) -> Iterator[Finding]:
    """GPUs, bf16, CPU threads."""
    if found["cuda"]:
        bf16 = "with bf16" if found["bf16"] else "without bf16, so training uses fp16"
        yield Finding(True, f"{len(found['gpus'])} GPU(s), {', '.join(sorted(set(found['gpus'])))}, {bf16}")
    elif shutil.which("nvidia-smi"):
        build = f"built for CUDA {found['cuda_build']}" if found["cuda_build"] else "a CPU build"
        cure = "Update the NVIDIA driver, or install the torch that fits it: https://pytorch.org/get-started/locally"
        yield Finding(False, f"this machine has NVIDIA's driver, but torch ({build}) sees no GPU", cure)
    else:
        yield Finding(True, f"no GPU: use -device cpu ({found['threads']} threads)")


def check_plugins(plugins: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """Every registered class: can it be imported, and is it called what it is registered as."""
    good: dict[str, list[str]] = {}
    for plugin in plugins:
        entry = f"{plugin['name']} ({plugin['group']}, registered by {plugin['package']})"
        if "error" in plugin:
            cure = f"pip install --upgrade --force-reinstall {plugin['package']}, or ask its authors."
            yield Finding(False, f"{entry} cannot be imported: {plugin['error']}", cure)
        elif plugin["group"].startswith("nnunetv2.") and plugin["is"] != plugin["name"]:
            cure = (
                f"nnU-Net writes the class name into its files and looks for it later: register it as {plugin['is']}."
            )
            yield Finding(False, f"{entry} is called {plugin['is']}", cure)
        else:
            good.setdefault(plugin["package"], []).append(plugin["name"])
    for package, names in good.items():
        yield Finding(True, f"{package} registers {', '.join(names)}")


def check_folders() -> Iterator[Finding]:
    """nnU-Net's three folders."""
    from nnunet_ssl.corpus.folders import how_to_spell

    for variable in FOLDERS:
        folder = os.environ.get(variable)
        if folder is None:
            yield Finding(False, f"{variable} is not set", f"export {variable}=/path/to/{variable}")
        elif not os.path.isdir(folder):
            cure = how_to_spell(variable, folder) or f"mkdir -p {shlex.quote(folder)}"
            yield Finding(False, f"{variable}={folder} does not exist", cure)
        elif variable != "nnUNet_raw" and not os.access(folder, os.W_OK):
            yield Finding(
                False,
                f"{variable}={folder} cannot be written to",
                f"Check its permissions: ls -ld {shlex.quote(folder)}",
            )
        else:
            yield Finding(True, f"{variable}={folder} ({shutil.disk_usage(folder).free / 2**30:.0f} GiB free)")


def last_lines(text: str, count: int = 5) -> str:
    """The end of a process's output."""
    return "\n".join(text.strip().splitlines()[-count:])


def main(argv: Sequence[str] | None = None) -> int:
    """Print all findings; returns 1 when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="nnunet-ssl doctor",
        description="Check versions, registration with nnU-Net, plugins, device and folders. Exit code 1 when "
        "something is wrong.",
    )
    parser.parse_args(argv)
    with until_nobody_reads():
        return examine()


def examine() -> int:
    """Print all findings; returns 1 when something is wrong."""
    problems = 0
    for title, checks in (
        ("versions", check_versions),
        ("bounds of versions", check_bounds),
        ("in a fresh process", check_fresh_process),
        ("folders", check_folders),
    ):
        print(f"{title}", flush=True)
        for finding in checks():
            problems += not finding.ok
            print(f"  {'ok     ' if finding.ok else 'PROBLEM'}  {finding.what}")
            if not finding.ok:
                print("\n".join(f"           {line}" for line in finding.cure.splitlines()))
    print(f"\n{problems} problem(s) found." if problems else "\nEverything is in place.")
    return 1 if problems else 0
