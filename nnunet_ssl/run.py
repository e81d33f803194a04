"""nnunet-ssl: run nnU-Net's commands with the plugin registered, and look after the installation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import nnunet_ssl
from nnunet_ssl.nearest import did_you_mean

# multiprocessing's spawn imports this module again in every worker, and through the line above registers there as well.
# A nnunet_ssl/__main__.py would not be: spawn leaves main modules of that name out.

EPILOG = """commands:
  nnUNetv2_...          any command of nnU-Net or of its plugins, with its own arguments; for environments where torch's
                        plugin loading is off (TORCH_DEVICE_BACKEND_AUTOLOAD=0)
  doctor                check this installation and say what to do about what is wrong

examples:
  nnunet-ssl nnUNetv2_train 4 3d_fullres all -tr SSLMAETrainer -p nnUNetResEncUNetLPlans
  nnunet-ssl doctor
  export nnUNet_extTrainer=$(nnunet-ssl --ext-trainer-folder)

`python -m nnunet_ssl.run` is the same as `nnunet-ssl`."""


def build_parser() -> argparse.ArgumentParser:
    """The flags before the command; everything after it belongs to the command."""
    parser = argparse.ArgumentParser(
        prog="nnunet-ssl",
        description="Normally not needed: nnU-Net's own commands find the plugin by themselves. This one runs them "
        "where they do not, and checks the installation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="nnUNetv2_... or doctor")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    parser.add_argument(
        "--ext-trainer-folder",
        action="store_true",
        help="print the folder to put into nnUNet_extTrainer, through which nnU-Net finds the trainers (only those)",
    )
    parser.add_argument("--version", action="version", version=f"nnunet_ssl {nnunet_ssl.__version__}")
    return parser


def commands() -> dict[str, EntryPoint]:
    """Console scripts of nnU-Net, ours and those of other plugins."""
    return {e.name: e for e in entry_points(group="console_scripts") if e.name.startswith("nnUNetv2_")}


def ext_trainer_folder() -> str:
    """Folder for nnUNet_extTrainer."""
    return str(Path(nnunet_ssl.__file__).parent / "integration" / "ext_trainers")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of nnunet-ssl and of `python -m nnunet_ssl.run`."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.ext_trainer_folder:
        print(ext_trainer_folder())
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    if args.command == "doctor":
        from nnunet_ssl.cli import doctor

        return doctor.main(args.arguments)
    known = commands()
    if args.command not in known:
        hint = did_you_mean(args.command, [*known, "doctor"])
        parser.exit(2, f"nnunet-ssl: there is no command {args.command}.{hint} See nnunet-ssl --help.\n")
    sys.argv = [args.command, *args.arguments]
    result = known[args.command].load()()
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
