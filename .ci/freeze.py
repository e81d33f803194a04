#!/usr/bin/env python3
"""Write constraints.txt: the versions, in this environment, of all that the package needs, for `pip install -c constraints.txt`.

`make constraints` does so before a release, in the environment in which the suite passed. What torch pins itself (CUDA) and the
tools of the development are left out.
"""

from __future__ import annotations

import platform
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).resolve().parents[1] / "constraints.txt"
OF_TORCH = ("nvidia-", "cuda-", "triton")


def needed(name: str, found: dict[str, str]) -> None:
    """Add everything that the distribution `name` needs, and what that needs, with versions."""
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        other = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and other not in found and not other.startswith(OF_TORCH):
            found[other] = distribution(requirement.name).version.partition("+")[0]
            needed(requirement.name, found)


def main() -> None:
    """Write the file."""
    found: dict[str, str] = {}
    needed("nnunet_ssl", found)
    python = ".".join(platform.python_version_tuple()[:2])
    own = distribution("nnunet_ssl").version
    head = f"# Python {python}: what nnunet_ssl {own} was tested with. Written by: make constraints"
    FILE.write_text("\n".join([head, *(f"{name}=={found[name]}" for name in sorted(found)), ""]))


if __name__ == "__main__":
    main()
