"""Run the contract tests against another nnU-Net than the one of this environment; the exit code is pytest's.

    python tests/compat/against.py --nnunet FOLDER [PYTEST ARGUMENTS]      a checkout of nnU-Net, used as it is
    python tests/compat/against.py --python PROGRAM [PYTEST ARGUMENTS]     another environment's Python, with its nnU-Net

Without arguments for pytest, tests/contract that take seconds (-m "not slow"). The other environment needs pytest, and this
package: pip install --no-deps -e . there. Says first which nnU-Net it is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
QUICK = ["tests/contract", "-m", "not slow", "-q"]
WHICH = "\n".join(  # in the other environment
    (
        "from importlib.metadata import entry_points",
        "import nnunetv2",
        "from nnunet_ssl.integration.nnunet_version import nnunet_version",
        "assert entry_points(group='nnunetv2.trainers', name='SSLMAETrainer'), 'pip install --no-deps -e . in that environment'",
        "print('nnunetv2', nnunet_version(), 'in', nnunetv2.__path__[0], flush=True)",
    )
)


def environment(nnunet: Path | None) -> dict[str, str]:
    """This process' environment; this checkout, and nnU-Net's where there is one, come first."""
    paths = [str(CHECKOUT), *([str(nnunet)] if nnunet else []), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def main() -> int:
    """Say which nnU-Net it is, and run the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", type=Path, metavar="FOLDER", help="a checkout of nnU-Net")
    parser.add_argument("--python", default=sys.executable, metavar="PROGRAM", help="of the environment to test in")
    args, for_pytest = parser.parse_known_args()
    if args.nnunet is not None and not (args.nnunet / "nnunetv2").is_dir():
        parser.error(f"{args.nnunet} has no folder nnunetv2 in it.")
    found = environment(args.nnunet.resolve() if args.nnunet else None)
    code = subprocess.run([args.python, "-c", WHICH], env=found, cwd=CHECKOUT, check=False).returncode
    if code:
        return code
    program = os.path.abspath(args.python) if os.sep in args.python else args.python
    os.chdir(CHECKOUT)
    tests = for_pytest or QUICK
    os.execvpe(program, [program, "-m", "pytest", *tests], found)  # in this process: who ends it ends the tests


if __name__ == "__main__":
    sys.exit(main())
