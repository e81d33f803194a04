"""nnUNetv2_pretrain_models: public pre-trained networks, and fetching them."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from nnunet_ssl.cli.parser import CommandParser
from nnunet_ssl.errors import SettingsError

if TYPE_CHECKING:
    from nnunet_ssl.checkpoints.hub.known_models import KnownModel

EXAMPLES = (
    "nnUNetv2_pretrain_models                                    all known models",
    "nnUNetv2_pretrain_models --method mae --backbone primus     those of one method and backbone",
    "nnUNetv2_pretrain_models ResEncL-OpenMind-MAE               everything about one, and how to use it",
    "nnUNetv2_pretrain_models ResEncL-OpenMind-MAE --download    fetch it (on a login node, for compute nodes without network)",
    "nnUNetv2_pretrain_models ORG/NAME --download                the same for any model on the Hugging Face Hub",
)
NOTES = """\
Cache, token, offline mode and mirror are those of huggingface_hub: HF_HOME, HF_TOKEN (or `hf auth login`), HF_HUB_OFFLINE,
HF_ENDPOINT."""
PRETRAIN = {
    "ResEncL": "resenc_l",
    "PrimusM": "primus_m",
    "Primus": "primus_x",
}  # backbone -> --backbone of nnUNetv2_pretrain
COLUMNS = ("name", "method", "backbone", "modality", "patch", "spacing [mm]", "licence", "repository")


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain_models",
        "[NAME] [flags]",
        "List public pre-trained networks. Their names work wherever -pretrained_weights does.",
        EXAMPLES,
        NOTES,
        greets=False,
    )
    parser.usual.add_argument("model", nargs="?", metavar="NAME", help="show this one whole; default: list all")
    parser.usual.add_argument("--method", metavar="X", help="only this pretext task, e.g. mae")
    parser.usual.add_argument("--backbone", metavar="X", help="only this network, e.g. ResEncL or PrimusM")
    parser.usual.add_argument("--modality", metavar="X", help="only models that saw this modality, e.g. CT")
    parser.usual.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.usual.add_argument(
        "--download",
        action="store_true",
        help="fetch NAME (or any id, URL or path that -pretrained_weights takes) and print its path",
    )
    return parser


def cells(model: KnownModel) -> tuple[str, ...]:
    """One row of the table."""
    patch = "x".join(map(str, model.patch)) if model.patch else "?"
    return (
        model.name,
        model.method,
        model.backbone,
        model.modality,
        patch,
        spacing(model),
        model.licence or "see page",
        model.repo_id,
    )


def spacing(model: KnownModel) -> str:
    """Spacing in mm as text."""
    if model.spacing is None or isinstance(model.spacing, str):
        return model.spacing or "?"
    return "x".join(f"{s:g}" for s in model.spacing)


def table(models: list[KnownModel]) -> str:
    """Aligned table of models."""
    rows = [COLUMNS, *map(cells, models)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def known_model_text(model: KnownModel) -> str:
    """Everything about one model, and the commands that use it."""
    from nnunet_ssl.checkpoints.hub.resolve import page

    facts = {
        "method": model.method,
        "backbone": model.backbone,
        "data": model.data,
        "modality": model.modality,
        "patch": "x".join(map(str, model.patch)) + " voxels" if model.patch else "see the adaptation plan on its page",
        "spacing": spacing(model) + (" mm" if isinstance(model.spacing, tuple) else ""),
        "licence": model.licence or "not stated in this list: look at its page before you use it",
        "page": page(model.repo_id) + (f" ({model.filename})" if model.filename else ""),
        "please cite": model.citation,
    }
    lines = [model.name, *(f"  {key + ':':<12} {value}" for key, value in facts.items())]
    lines += [f"  {model.note}"] if model.note else []
    fetch = ["Fetch it for machines without network:", f"  nnUNetv2_pretrain_models {model.name} --download"]
    if model.only_for is not None:
        return "\n".join([*lines, f"\nIt can be used with {model.only_for} alone.", *fetch])
    lines += [
        "\nFine-tune it on data set 4 (any number of channels, any patch size):",
        f"  nnUNetv2_finetune 4 -pretrained_weights {model.name}",
        "    plans, preprocesses and trains; or, with plans you have, by nnU-Net's own command:",
        f"  nnUNetv2_train 4 3d_fullres 0 -tr SSLFinetuneTrainer -p PLANS -pretrained_weights {model.name}",
    ]
    if model.backbone in PRETRAIN:
        lines += [
            "Go on pre-training from it on your own images:",
            f"  nnUNetv2_pretrain 745 --backbone {PRETRAIN[model.backbone]} -pretrained_weights {model.name}",
        ]
    return "\n".join([*lines, *fetch])


def run(args: argparse.Namespace) -> None:
    """List, show or fetch."""
    from nnunet_ssl.checkpoints.hub.known_models import get_model, select_models

    filters = (args.method, args.backbone, args.modality)
    if args.model is not None and any(filters):
        raise SettingsError("Give a NAME or filters, not both.")
    if args.download:
        if args.model is None:
            raise SettingsError("--download wants the NAME of a model. nnUNetv2_pretrain_models lists them.")
        from nnunet_ssl.checkpoints.hub.resolve import resolve_source

        found = resolve_source(args.model)
        print(json.dumps(found.origin.to_json(), indent=2) if args.json else f"{found.path}\n{found.origin}")
    elif args.model is not None:
        model = get_model(args.model)
        print(json.dumps(model.to_json(), indent=2) if args.json else known_model_text(model))
    else:
        models = select_models(*filters)
        if not models:
            raise SettingsError("No known model fits. Without filters, nnUNetv2_pretrain_models lists all of them.")
        print(json.dumps([m.to_json() for m in models], indent=2) if args.json else table(models))


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain_models."""
    from nnunet_ssl.cli.errors import one_line_errors
    from nnunet_ssl.cli.pipes import until_nobody_reads

    args = build_parser().parse_args(argv)
    with one_line_errors("nnUNetv2_pretrain_models"), until_nobody_reads():
        run(args)


if __name__ == "__main__":
    main()
