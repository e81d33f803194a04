"""From a data set and a checkpoint to everything a fine-tuning needs: plans, preprocessed images, the next commands."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import makedirs
from os.path import isdir, isfile, join
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_ssl.checkpoints.adaptation.adapt import adapt
from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.description.conventions import Conventions, read_conventions
from nnunet_ssl.checkpoints.description.stated import channels_of_dataset
from nnunet_ssl.checkpoints.hub.resolve import Origin, resolve_source
from nnunet_ssl.checkpoints.networks.spec import NetworkSpec
from nnunet_ssl.checkpoints.networks.stated import network_of, training_configuration
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.datasets import load_plans, plans_file, require_raw, resolve_datasets
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.folders import require_writable
from nnunet_ssl.planners.finetuning.finetune_differences import comparison, differences
from nnunet_ssl.planners.finetuning.finetune_plans import FinetunePlanner, Wishes
from nnunet_ssl.planners.folds import FOLDS, folds_of
from nnunet_ssl.planners.prepare import ensure_fingerprint
from nnunet_ssl.planners.preprocessor import SSLPreprocessor
from nnunet_ssl.planners.sharing.changes import compare
from nnunet_ssl.planners.sharing.finished import SETTINGS, STATE, finished_cases
from nnunet_ssl.planners.sharing.follow import follow_dataset_json, planning_lock
from nnunet_ssl.planners.sharing.labels import copy_labels
from nnunet_ssl.planners.ssl_planner import NNUNET_PLANS
from nnunet_ssl.settings.blocks import FinetuneSettings, read_config

PLANS = "nnUNetFinetunePlans"


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint, opened: its weights in canonical form and all that planning needs to know about it."""

    checkpoint: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    info: Mapping[str, Any]
    spec: NetworkSpec
    conventions: Conventions
    origin: Origin


def open_pretrained(text: str, stem: str | None = None, channel_names: Sequence[str] | None = None) -> Pretrained:
    """The checkpoint a user named (path, hub address or known model); raises CheckpointError.

    stem, and the target's channel_names: see `choose_stem`.
    """
    local = resolve_source(text)
    checkpoint = read_checkpoint(local.path)
    weights, info = canonical_weights(checkpoint, stem=stem, target_channel_names=channel_names)
    return Pretrained(
        checkpoint, weights, info, network_of(checkpoint, weights), read_conventions(checkpoint), local.origin
    )


@dataclass(frozen=True)
class Planned:
    """What a fine-tuning needs to know of its plans: the plans themselves, their configuration, and the data set's folds."""

    plans: dict[str, Any]
    configuration: str
    folds: tuple[str, ...]


def plan_finetuning(
    dataset: str | int,
    text: str,
    wishes: Wishes,
    *,
    plans_name: str | None = None,
    preprocess: bool = True,
    num_processes: int = 8,
    keep: bool = False,
) -> Planned:
    """Plan, check, preprocess. Raises CorpusError and CheckpointError.

    keep: a training follows at once. Plans of that name that are there, and were edited since, are used as they are; the table of
    what is taken from the checkpoint is left to the training.
    """
    (name,) = resolve_datasets([dataset])
    labelled = require_labels(name)
    require_writable(join(nnUNet_preprocessed, name))
    channels = read_dataset_json(require_raw(name, "planning a fine-tuning")).get("channel_names")
    pretrained = open_pretrained(text, wishes.stem, channels_of_dataset(channels))
    adapt_by = wishes.resolved_adapt(pretrained.conventions)
    plans_name = checked_name(plans_name) if plans_name else default_name(pretrained, adapt_by, wishes)
    print(f"{pretrained.origin}\n{pretrained.spec}, according to {pretrained.spec.source}")
    for note in (*pretrained.info["notes"], *pretrained.spec.notes):
        print(f"- {note}")
    makedirs(str(nnUNet_preprocessed), exist_ok=True)
    with planning_lock(name).waiting():
        ensure_fingerprint(name, num_processes)
    planner = FinetunePlanner(name, plans_name, pretrained.spec, pretrained.conventions, wishes)
    plans = planner.plan()
    plans["configurations"][planner.configuration]["finetune"] = finetune_block(pretrained, wishes)
    channel_names = [str(c) for c in planner.dataset_json["channel_names"].values()]
    before = pretrained.info["num_input_channels"]
    told = differences(pretrained.conventions, before, plans, planner.configuration, channel_names)
    plans["pretraining"] = record(pretrained, planner.adapt, told)
    print(f"\n{comparison(pretrained.conventions, before, plans, planner.configuration)}")
    print("\n".join(f"NOTE: {sentence}" for sentence in told))
    table = check_transfer(pretrained, plans, planner.configuration, planner.dataset_json)
    print("" if keep else f"\n{table}\n")
    plans = write_plans(plans, planner.dataset_json, wishes if keep else None)
    if preprocess:
        preprocess_for(name, plans_name, planner.configuration, labelled, num_processes)
    return Planned(plans, planner.configuration, folds_for(name, len(labelled)))


def folds_for(name: str, labelled: int) -> tuple[str, ...]:
    """The folds of a data set of so many labelled cases: its own, or those nnU-Net will make; ("all",) where there are none."""
    numbers = folds_of(name) or list(range(FOLDS)) * (labelled >= FOLDS)
    return tuple(map(str, numbers)) or ("all",)


def require_labels(name: str) -> dict[str, str]:
    """{case: label file} of a raw dataset; raises CorpusError where there is nothing to learn from."""
    folder = require_raw(name, "planning a fine-tuning")
    dataset_json = read_dataset_json(folder)
    cases = list_images(folder, dataset_json)
    labelled = {case: files["label"] for case, files in cases.items() if files["label"] is not None}
    if not labelled or len(dataset_json["labels"]) < 2:
        what = "no label files" if not labelled else 'no label besides the background in its dataset.json ("labels")'
        raise CorpusError(
            f"{name} has {what}, and fine-tuning learns from labels. Expected {join(folder, 'labelsTr')} with one "
            "segmentation per labelled image. To pre-train on images without labels: "
            f"nnUNetv2_pretrain {dataset_id(name)}"
        )
    if len(labelled) < len(cases):
        print(
            f"{len(cases) - len(labelled)} of {len(cases)} images of {name} have no label; fine-tuning leaves them out."
        )
    return labelled


def default_name(pretrained: Pretrained, adapt_by: str, wishes: Wishes) -> str:
    """A plans name that tells checkpoints, and ways to adapt to them, apart."""
    if pretrained.origin.repo_id:
        what = pretrained.origin.repo_id.rpartition("/")[2]
    else:
        what = f"{pretrained.info['method'] or 'weights'}_{pretrained.info['backbone']}"
    parts = [PLANS, what, pretrained.origin.sha256[:6], adapt_by]
    if wishes.spacing is not None:
        parts.append("x".join(f"{s:g}" for s in wishes.spacing) + "mm")
    if wishes.patch_size is not None:
        parts.append("patch" + "x".join(map(str, wishes.patch_size)))
    parts += wishes.short()
    # nnU-Net takes result folders apart at double underscores.
    return re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_-]", "-", "_".join(parts)))


def checked_name(name: str) -> str:
    """A plans name the user chose; raises CorpusError for one nnU-Net could not live with."""
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) or "__" in name or name.endswith(".json"):
        raise CorpusError(
            f"{name!r} cannot name plans: nnU-Net makes file and folder names of it. Use letters, digits, - and single "
            f"underscores, e.g. -plans_name {PLANS}_mine"
        )
    if any(fnmatch.fnmatch(name, pattern) for pattern in NNUNET_PLANS):
        raise CorpusError(
            f"{name} is a name nnU-Net's own planners write to; they would overwrite these plans. Choose another, e.g. "
            f"-plans_name {PLANS}_mine"
        )
    return name


def finetune_block(pretrained: Pretrained, wishes: Wishes) -> dict[str, Any]:
    """The `finetune` block: that of our own pre-training plans, the method's transfer, and the user's epochs.

    Of a network that was trained on labels the decoder is worth keeping too, as nnU-Net's own -pretrained_weights does.
    """
    own = training_configuration(pretrained.checkpoint).get("finetune", {}) if "ssl" in pretrained.checkpoint else {}
    block = {"transfer": "encoder+decoder" if pretrained.conventions.segments else pretrained.info["transfer"], **own}
    block.update(wishes.schedule())
    block.pop("stem", None)  # of what the pre-training itself began with
    if pretrained.info["stem"] is not None:
        block["stem"] = pretrained.info["stem"]
    read_config(FinetuneSettings, block, "the finetune block of the checkpoint's plans")
    return block


def record(pretrained: Pretrained, adapt_by: str, told: list[str]) -> dict[str, Any]:
    """What the plans keep about the pre-training; no path of this machine, so that plans can be passed on."""
    origin = {k: v for k, v in pretrained.origin.to_json().items() if k != "path"}
    what = {key: pretrained.info[key] for key in ("method", "backbone", "num_input_channels")}
    return {
        **origin,
        **what,
        "dataset": pretrained.conventions.dataset,
        "network_from": pretrained.spec.source,
        "adapt": adapt_by,
        "differences": told,
    }


def check_transfer(
    pretrained: Pretrained, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> str:
    """Build the network of the plans, adapt the weights to it and return the table; raises CheckpointError when poor."""
    from nnunet_ssl.integration.architecture import build_network

    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    labels = manager.get_label_manager(dataset_json)
    with torch.device("meta"):  # names and shapes are all that is needed
        network = build_network(
            settings,
            determine_num_input_channels(manager, settings, dataset_json),
            labels.num_segmentation_heads,
            deep_supervision=False,
        )
    _, report = adapt(
        pretrained.weights,
        network,
        transfer=plans["configurations"][configuration]["finetune"]["transfer"],
        channels=plans["configurations"][configuration]["finetune"].get("channels", "repeat"),
        source_patch_size=pretrained.info["patch_size"],
        target_patch_size=settings.patch_size,
        target_channel_names=[str(c) for c in dataset_json["channel_names"].values()],
        source_info=pretrained.info,
    )
    report.raise_if_poor()
    return f"What the network of the plans takes from the checkpoint:\n{report.table()}"


def write_plans(plans: dict[str, Any], dataset_json: dict[str, Any], keep: Wishes | None = None) -> dict[str, Any]:
    """Write new plans, and dataset.json beside them; returns those that are there then.

    Raises CorpusError where other plans have that name, unless `keep` says that they may have been edited: they stay, as long as
    they do what these wishes ask for.
    """
    name, plans_name = plans["dataset_name"], plans["plans_name"]
    path = plans_file(name, plans_name)
    there = load_plans(name, plans_name) if isfile(path) else plans
    if there != plans and keep is not None and _does(there, plans, keep):
        print(f"Using the plans that are there, which differ from what would be planned now: {path}")
        return there
    if there != plans:
        raise CorpusError(
            f"{path} exists and holds other plans, which are never overwritten. Choose another name with "
            f"-plans_name {plans_name}_2, or remove the file if nothing was trained with it."
        )
    makedirs(join(nnUNet_preprocessed, name), exist_ok=True)
    with planning_lock(name).waiting():
        follow_dataset_json(name, require_raw(name, "planning"), dataset_json)
        write_json(dataset_json, join(nnUNet_preprocessed, name, "dataset.json"))
    if isfile(path):
        print(f"The same plans are there already: {path}")
        return plans
    write_json(plans, path)
    print(f"New plans: {path}")
    return plans


def _does(there: Mapping[str, Any], planned: Mapping[str, Any], wishes: Wishes) -> bool:
    """Whether plans have the network that was planned, and the length and batch that were asked for."""
    (configuration,) = planned["configurations"]
    entries, wanted = there["configurations"].get(configuration, {}), planned["configurations"][configuration]
    same = [entries.get("architecture") == wanted["architecture"]]
    same += [entries.get("finetune", {}).get(key) == value for key, value in wishes.schedule().items()]
    same += [entries.get("batch_size") == wishes.batch_size] if wishes.batch_size is not None else []
    return all(same)


def preprocess_for(
    name: str, plans_name: str, configuration: str, labels: Mapping[str, str], num_processes: int
) -> None:
    """Preprocess the images that are not finished, and copy labels to where nnU-Net validates against them."""
    base = join(nnUNet_preprocessed, name)
    settings = read_json(plans_file(name, plans_name))["configurations"][configuration]
    folder = join(base, settings["data_identifier"])
    # nnUNetv2_preprocess leaves no record of its settings, but begins with an empty folder.
    by_nnunet = isdir(folder) and not isfile(join(folder, STATE, SETTINGS))
    raw = require_raw(name, "preprocessing")
    dataset_json = read_dataset_json(raw)
    cases = list_images(raw, dataset_json)
    if by_nnunet and finished_cases(folder) >= set(labels) and not compare(folder, cases).changed:
        print(f"{name}: preprocessed images are there: {folder}")
        copy_labels(name, cases, dataset_json["file_ending"])
        return
    # The same images as nnU-Net's DefaultPreprocessor makes, but an interrupted run goes on where it stopped.
    SSLPreprocessor(verbose=False).run(name, configuration, plans_name, num_processes)


def next_commands(planned: Planned, text: str, *, from_scratch: bool, preprocess: bool) -> str:
    """What to type after planning with the checkpoint that the user calls `text`."""
    number, name = dataset_id(planned.plans["dataset_name"]), shlex.quote(planned.plans["plans_name"])
    configuration = shlex.quote(planned.configuration)
    weights = f" -pretrained_weights {shlex.quote(text)}"
    first, folds = planned.folds[0], " ".join(planned.folds)

    def commands(title: str, trainer: str, start: str) -> str:
        def train(fold: str) -> str:
            return f"nnUNetv2_train {number} {configuration} {fold} -tr {trainer} -p {name}{start}"

        lines = [f"{title}:", f"  {train(first)}"]
        if folds != first:
            lines += [f"all {len(folds.split())} folds:", f"  for f in {folds}; do {train('$f')}; done"]
        lines += [
            "predict:",
            f"  nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d {number} -c {configuration} -tr {trainer} -p {name} "
            f"-f {folds}",
        ]
        return "\n".join(lines)

    parts = []
    if not preprocess:
        parts.append(
            f"Preprocess:\n  nnUNetv2_preprocess -d {number} -plans_name {name} -c {configuration} -np 4\n"
            "(or run this command again without --no-preprocess)"
        )
    parts.append(commands("Fine-tune", "SSLFinetuneTrainer", weights))
    if from_scratch:
        parts.append(commands("Train the matched twin from scratch, on the same plans", "SSLScratchTrainer", ""))
    return "\n\n".join(parts)
