"""A fine-tuned model folder as stock nnU-Net makes it, for prediction where this package is not installed."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ssl.checkpoints.export.formats import CARD, Finish, new_folder
from nnunet_ssl.checkpoints.export.portable import Portable
from nnunet_ssl.checkpoints.export.private import DATASET_JSON, FINGERPRINT, Scrubber
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.checkpoints.write import save_checkpoint
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.integration.stock_model import check_same_network, stock_plans, stock_trainer

FOLD = re.compile(r"fold_(\d+|all)$")
FILES = frozenset({"plans.json", "dataset.json", "dataset_fingerprint.json", *CARD})


@dataclass(frozen=True)
class ModelFolder:
    """A result folder of nnU-Net, TRAINER__PLANS__CONFIGURATION, and the checkpoint of every fold that is meant."""

    folder: Path
    checkpoints: Mapping[str, Path]  # by fold: "0", "1", ... or "all"


def find_model(source: str, folds: Sequence[str] | None = None, name: str | None = None) -> ModelFolder | None:
    """The model folder that a path to it, to one of its folds or to a checkpoint in it stands for; None for others.

    `folds` and `name` (default checkpoint_final.pth) choose. Raises CheckpointError for folds without that checkpoint.
    """
    path = Path(source).expanduser()
    if path.is_file():
        path, name = path.parent, name or path.name
    name = name or "checkpoint_final.pth"
    fold = FOLD.match(path.name)
    if fold:
        path, folds = path.parent, folds or [fold[1]]
    if not all((path / file).is_file() for file in ("plans.json", "dataset.json")):
        return None
    present = {found[1]: p for p in sorted(path.iterdir()) if (found := FOLD.match(p.name)) and (p / name).is_file()}
    missing = [f for f in folds or () if f not in present]
    if missing or not present:
        raise CheckpointError(
            f"{path} has no {name} in {', '.join(f'fold_{f}' for f in missing) or 'any fold'}; it has one in "
            f"{', '.join(f'fold_{f}' for f in present) or 'none'}. Choose with -f and -chk."
        )
    return ModelFolder(path, {f: present[f] / name for f in present if not folds or f in folds})


def export_stock_model(
    model: ModelFolder, folder: str | os.PathLike[str], *, overwrite: bool = False, finish: Finish | None = None
) -> tuple[Path, Portable]:
    """Write the model as TRAINER__PLANS__CONFIGURATION in `folder`, TRAINER being one of stock nnU-Net's.

    It predicts there what it predicts here, to the last bit; it holds what prediction needs, and neither optimiser, log,
    paths nor case names. Returns its folder, the first fold's checkpoint and what was left out. Raises CheckpointError
    for a model stock nnU-Net cannot build, FileExistsError when the folder is taken.
    """
    scrub = Scrubber()
    checkpoints = {fold: read_checkpoint(path) for fold, path in model.checkpoints.items()}
    configuration = _configuration(checkpoints, model)
    plans = stock_plans(read_json(str(model.folder / "plans.json")), scrub)
    dataset_json = scrub.keep(read_json(str(model.folder / "dataset.json")), DATASET_JSON, "dataset.json")
    trainer = stock_trainer(plans, configuration)
    stock = {}
    for fold, checkpoint in checkpoints.items():
        check_same_network(checkpoint, plans, configuration, dataset_json, trainer)
        stock[fold] = _stock_checkpoint(checkpoint, trainer, plans, configuration, fold, dataset_json)
        scrub.removed += [str(key) for key in checkpoint if key not in stock[fold]]
    target = Path(folder).expanduser() / f"{trainer}__{plans['plans_name']}__{configuration}"
    with new_folder(target, overwrite, _is_ours) as temporary:
        write_json(plans, str(temporary / "plans.json"))
        write_json(dataset_json, str(temporary / "dataset.json"))
        fingerprint = model.folder / "dataset_fingerprint.json"
        if fingerprint.is_file():
            known = scrub.keep(read_json(str(fingerprint)), FINGERPRINT, "dataset_fingerprint.json")
            write_json(known, str(temporary / "dataset_fingerprint.json"))
        for fold, content in stock.items():
            (temporary / f"fold_{fold}").mkdir()
            save_checkpoint(content, temporary / f"fold_{fold}" / model.checkpoints[fold].name)
        if finish is not None:
            finish(temporary, next(iter(stock.values())))
    return target, Portable(next(iter(stock.values())), list(dict.fromkeys(scrub.removed)))


def _configuration(checkpoints: Mapping[str, Mapping[str, Any]], model: ModelFolder) -> str:
    """The configuration all folds were trained with; raises CheckpointError for pre-trainings and a mixture."""
    found = set()
    for fold, checkpoint in checkpoints.items():
        if "ssl" in checkpoint:
            raise CheckpointError(no_model_advice(model.checkpoints[fold], checkpoint))
        arguments = checkpoint.get("init_args")
        if "trainer_name" not in checkpoint or not isinstance(arguments, Mapping) or "configuration" not in arguments:
            raise CheckpointError(f"{model.checkpoints[fold]} was not written by an nnU-Net trainer.")
        found.add((checkpoint["trainer_name"], str(arguments["configuration"])))
    if len(found) != 1:
        raise CheckpointError(f"The folds of {model.folder} do not belong together: {sorted(found)}. Choose with -f.")
    return found.pop()[1]


def _stock_checkpoint(
    checkpoint: Mapping[str, Any],
    trainer: str,
    plans: Mapping[str, Any],
    configuration: str,
    fold: str,
    dataset_json: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "network_weights": checkpoint["network_weights"],
        "trainer_name": trainer,
        "init_args": {
            "plans": plans,
            "configuration": configuration,
            "fold": fold if fold == "all" else int(fold),
            "dataset_json": dataset_json,
        },
        "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
        "current_epoch": checkpoint.get("current_epoch"),
    }


def _is_ours(path: Path) -> bool:
    if path.parent == Path():
        return path.name in FILES
    return FOLD.match(str(path.parent)) is not None and path.suffix == ".pth"


def no_model_advice(path: Path, checkpoint: Mapping[str, Any]) -> str:
    """What to do with a file that is no fine-tuned model instead of exporting it for stock nnU-Net."""
    if "ssl" not in checkpoint and "nnssl_adaptation_plan" not in checkpoint:
        return (
            f"{path} lies in no model folder: prediction needs plans.json and dataset.json beside its fold. Name the "
            "folder TRAINER__PLANS__CONFIGURATION."
        )
    return (
        f"{path} comes from a pre-training, not from a fine-tuning: it predicts nothing. Stock nnU-Net starts from it as it "
        f"is, where the networks agree: nnUNetv2_train ... -pretrained_weights {shlex.quote(str(path))}. To give it away, use "
        "--format nnssl; stock nnU-Net's -pretrained_weights loads that file too."
    )
