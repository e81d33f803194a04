"""nnUNetv2_pretrain_export: checkpoints for people who do not have this package."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ssl.cli.parser import CommandParser, one_of
from nnunet_ssl.errors import CheckpointError, SettingsError

EXAMPLES = (
    "nnUNetv2_pretrain_export .../SSLMAETrainer__PLANS__3d_fullres/fold_all/checkpoint_final.pth -o my_model",
    "nnUNetv2_pretrain_export CHECKPOINT -o my_model --format safetensors --licence CC-BY-4.0",
    "nnUNetv2_pretrain_export CHECKPOINT -o my_teacher --weights teacher      of self_distillation, instead of the student",
    "nnUNetv2_pretrain_export .../SSLFinetuneTrainer__PLANS__3d_fullres -o models             all its folds, for stock nnU-Net",
    "nnUNetv2_pretrain_export CHECKPOINT -o my_model --licence CC-BY-4.0 --push-to-hub ORG/NAME",
)
NOTES = """\
formats:
  nnssl        OUT/checkpoint_final.pth and adaptation_plan.json, for the fine-tuning code of nnU-Net's development branch,
               TaWald/nnUNet and SSL3D_classification, and for stock nnU-Net's -pretrained_weights. The default for
               pre-training checkpoints of any origin.
  safetensors  OUT/model.safetensors and config.json: tensors and text that no program needs to trust.
  nnunet       OUT/nnUNetTrainer__PLANS__CONFIGURATION, from a fine-tuned model folder: nnUNetv2_predict gives the same
               result, to the last bit, where this package is not installed. U-Nets of any size, and Primus of the sizes S,
               B, M and L (OUT/nnUNet_Primus_M_Trainer__...). The default for model folders.

What is written holds no optimiser, no paths, no names of cases; "Left out" lists what the original had besides."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain_export",
        "X -o OUT [flags]",
        "Write a pre-trained checkpoint or a fine-tuned model in a form that others can use and you can\n"
        "give away, with a model card, and publish it if asked.",
        EXAMPLES,
        NOTES,
    )
    parser.usual.add_argument(
        "source", metavar="X", help="checkpoint file, model folder, Hugging Face id or name of a known model"
    )
    parser.usual.add_argument("-o", dest="out", metavar="OUT", required=True, help="folder to make")
    parser.usual.add_argument(
        "--format",
        type=one_of(("nnssl", "safetensors", "nnunet")),
        metavar="nnssl|safetensors|nnunet",
        help="default: by what X is",
    )
    parser.usual.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export (never any other files)"
    )
    what = parser.add_argument_group("what to write")
    what.add_argument(
        "-f", dest="folds", nargs="+", metavar="FOLD", help="folds of a model folder (default: all of them)"
    )
    what.add_argument(
        "-chk", dest="checkpoint", metavar="NAME", help="of a model folder (default: checkpoint_final.pth)"
    )
    what.add_argument("--licence", metavar="ID", help="of the weights, e.g. CC-BY-4.0 (https://spdx.org/licenses)")
    what.add_argument(
        "--weights",
        default="student",
        type=one_of(("student", "teacher")),
        metavar="student|teacher",
        help="of self_distillation: the network that was trained (default), or its moving average",
    )
    what.add_argument(
        "--stem", metavar="ID", help="of weights with a stem for every data set: its id or number, or mean (of all)"
    )
    what.add_argument("--keep-log", action="store_true", help="also losses and times of every epoch")
    what.add_argument("--keep-heads", action="store_true", help="also the pretext task's own layers")
    what.add_argument(
        "--token-order",
        default="natural",
        type=one_of(("natural", "swapped")),
        metavar="natural|swapped",
        help="of Primus weights: natural (default) for nnU-Net, swapped for SSL3D_classification",
    )
    publish = parser.add_argument_group("publish")
    publish.add_argument(
        "--push-to-hub", metavar="ORG/NAME", help="upload OUT to the Hugging Face Hub, as a private model"
    )
    publish.add_argument("--public", action="store_true", help="with --push-to-hub: for everybody to see")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Raise SettingsError for flags that contradict each other."""
    if args.public and not args.push_to_hub:
        raise SettingsError("--public goes with --push-to-hub ORG/NAME.")
    if args.push_to_hub and args.push_to_hub.count("/") != 1:
        raise SettingsError(f"--push-to-hub wants ORG/NAME, found {args.push_to_hub!r}.")
    for fold in args.folds or ():
        if fold != "all" and not fold.isdigit():
            raise SettingsError(f'-f wants numbers of folds or "all", found {fold!r}.')
    if args.format == "nnunet":
        check_for_stock(args)


def check_for_stock(args: argparse.Namespace) -> None:
    """Raise SettingsError for flags that mean nothing where a fine-tuned model is exported for stock nnU-Net."""
    if args.keep_log or args.keep_heads or (args.token_order, args.weights, args.stem) != ("natural", "student", None):
        raise SettingsError(
            "--keep-log, --keep-heads, --weights, --stem and --token-order go with --format nnssl and safetensors."
        )


def run(args: argparse.Namespace) -> None:
    """Export, and publish if asked."""
    check_flags(args)
    from nnunet_ssl.checkpoints.read import read_checkpoint
    from nnunet_ssl.files.folders import require_writable
    from nnunet_ssl.integration.stock_export import find_model

    require_writable(Path(args.out).expanduser().absolute().parent)
    model = find_model(args.source, args.folds, args.checkpoint)
    if model is None and (args.folds or args.checkpoint):
        raise SettingsError(f"-f and -chk go with a model folder of nnU-Net, and {args.source} is none.")
    if model is None:
        folder = _export_file(args, *_resolve(args.source))
    else:
        path = next(iter(model.checkpoints.values()))
        chosen = args.format or ("nnssl" if "ssl" in read_checkpoint(path) else "nnunet")
        if chosen == "nnunet":
            check_for_stock(args)
            folder = _export_model(args, model)
        elif len(model.checkpoints) > 1:
            raise SettingsError(
                f"--format {chosen} takes one fold. Choose with -f, e.g. -f {next(iter(model.checkpoints))}."
            )
        else:
            args.format = chosen
            folder = _export_file(args, path, None)
    if args.push_to_hub:
        print(f"Published: {_push(args, folder)}")


def _resolve(source: str) -> tuple[Path, str | None]:
    """The checkpoint file X stands for, and the licence its repository states."""
    from nnunet_ssl.checkpoints.hub.resolve import resolve_source

    found = resolve_source(source)
    return found.path, found.origin.licence


def _export_file(args: argparse.Namespace, path: Path, licence: str | None) -> Path:
    from nnunet_ssl.checkpoints.export.formats import export_nnssl, export_safetensors
    from nnunet_ssl.checkpoints.export.portable import ExportOptions
    from nnunet_ssl.checkpoints.read import read_checkpoint
    from nnunet_ssl.integration.stock_export import no_model_advice

    checkpoint = read_checkpoint(path)
    if args.format == "nnunet":
        raise CheckpointError(no_model_advice(path, checkpoint))
    stated = (checkpoint.get("ssl") or {}).get("licence")
    options = ExportOptions(
        args.licence or stated or licence,
        args.token_order,
        args.keep_log,
        args.keep_heads,
        args.weights,
        args.stem,
    )
    write = export_safetensors if args.format == "safetensors" else export_nnssl

    def finish(folder: Path, written: Mapping[str, Any]) -> None:
        _write_card(args, folder, {**written, "logging": checkpoint.get("logging")}, path)

    made = write(checkpoint, args.out, options, overwrite=args.overwrite, finish=finish)
    _tell(Path(args.out), made.removed)
    return Path(args.out)


def _export_model(args: argparse.Namespace, model: Any) -> Path:
    from nnunet_ssl.integration.stock_export import export_stock_model

    def finish(folder: Path, written: Mapping[str, Any]) -> None:
        _write_card(args, folder, written, next(iter(model.checkpoints.values())))

    folder, made = export_stock_model(model, args.out, overwrite=args.overwrite, finish=finish)
    _tell(folder, made.removed)
    print(
        f"Predict with it: nnUNetv2_predict_from_modelfolder -i IMAGES -o SEGMENTATIONS -m {shlex.quote(str(folder))}"
    )
    return folder


def _write_card(args: argparse.Namespace, folder: Path, checkpoint: Mapping[str, Any], source: Path) -> None:
    from nnunet_ssl.checkpoints.hub.model_card import write_model_card

    progress = source.parent / "progress.png"
    write_model_card(folder, checkpoint, repo_id=args.push_to_hub, licence=args.licence, progress=progress)


def _tell(folder: Path, removed: list[str]) -> None:
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    print(f"Wrote {folder}: {', '.join(files)}")
    if removed:
        shown = [*removed[:12], f"and {len(removed) - 12} more"] if len(removed) > 12 else removed
        print(f"Left out: {', '.join(shown)}")


def _push(args: argparse.Namespace, folder: Path) -> str:
    """Upload, asking before files of the repository are replaced where there is somebody to ask."""
    from nnunet_ssl.checkpoints.hub.publish import push_to_hub
    from nnunet_ssl.errors import RepositoryNotEmptyError

    private = not args.public
    try:
        return push_to_hub(folder, args.push_to_hub, private=private, overwrite=args.overwrite)
    except RepositoryNotEmptyError as error:
        if not sys.stdin.isatty():
            raise
        print(error)
        if input(f"Replace these files of {args.push_to_hub}? [y/N] ").strip().lower() not in ("y", "yes"):
            raise
    return push_to_hub(folder, args.push_to_hub, private=private, overwrite=True)


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain_export."""
    from nnunet_ssl.cli.errors import one_line_errors

    args = build_parser().parse_args(argv)
    with one_line_errors("nnUNetv2_pretrain_export", "Nothing is half written; the same command begins anew."):
        run(args)


if __name__ == "__main__":
    main()
