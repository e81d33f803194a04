"""From a run's plans to its batches: where the data lie, how they are augmented, which process gets what."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from os.path import isdir, isfile, join
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import distributed as dist

from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.datasets import raw_folder
from nnunet_ssl.corpus.names import require_case_names
from nnunet_ssl.corpus.splits import FILE as SPLITS
from nnunet_ssl.corpus.splits import enough_for_folds, require_splits
from nnunet_ssl.corpus.subjects import split_by_subject, stable_split
from nnunet_ssl.corpus.table import has_table
from nnunet_ssl.errors import CorpusError, NotPreprocessed, SettingsError
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.messages import counted
from nnunet_ssl.planners.preprocessing.foreground import mask_labels
from nnunet_ssl.planners.sharing.labels import FOLDER as LABELS
from nnunet_ssl.trainers.context import LoaderContext
from nnunet_ssl.trainers.data.augmentation import Augmentation, augmentation
from nnunet_ssl.trainers.data.batches import Positions, load_batches
from nnunet_ssl.trainers.data.corpus import TRAINING, VALIDATION, Corpus, CorpusDataset
from nnunet_ssl.trainers.data.patch_sampler import PatchSampler
from nnunet_ssl.trainers.data.patches import PatchDataset
from nnunet_ssl.trainers.data.selection import apply_filter, corpus_table, subject_of_image, weights_for


def corpus_datasets(context: LoaderContext) -> list[CorpusDataset]:
    """The preprocessed data sets of a run; raises NotPreprocessed saying how to make the missing ones."""
    datasets = []
    for name in (context.plans_manager.dataset_name, *context.settings.datasets):
        folder = join(nnUNet_preprocessed, name, context.configuration_manager.data_identifier)
        dataset_json = join(nnUNet_preprocessed, name, "dataset.json")
        if not isdir(folder) or not isfile(dataset_json):
            raise NotPreprocessed(
                f"There are no preprocessed data in {folder}. Run nnUNetv2_preprocess -d {dataset_id(name)} "
                f"-plans_name {shlex.quote(context.plans_manager.plans_name)} -c {shlex.quote(context.configuration_name)}, or "
                "let nnUNetv2_pretrain do what is missing."
            )
        labels, channels = _labels_and_channels(dataset_json, os.stat(dataset_json).st_mtime_ns)
        anatomy, anonymised = mask_labels(labels)
        # The table lies with the raw data; a copy beside the preprocessed ones serves machines without these.
        folders = (raw_folder(name), join(nnUNet_preprocessed, name))
        table_folder = next((f for f in folders if f is not None and has_table(f)), None)
        datasets.append(CorpusDataset(name, folder, anonymised, anatomy, channels, table_folder))
    return datasets


@lru_cache(maxsize=64)
def _labels_and_channels(dataset_json: str, changed: int) -> tuple[dict[str, Any], tuple[str, ...]]:  # noqa: ARG001  # a key of the cache
    """Of a dataset.json, which in a large corpus has tens of megabytes; `changed` is its time of change."""
    content = read_json(dataset_json)
    names = content.get("channel_names") or content.get("modality") or {}
    return content.get("labels", {}), tuple(str(name) for name in names.values())


def split_corpus(
    context: LoaderContext, of_fold: Callable[[], tuple[list[str], list[str]]]
) -> tuple[list[str], list[str]]:
    """(training, validation) identifiers of a run, see `SSLTrainer.do_split`; `of_fold` is nnU-Net's own split.

    The split is made before the filter is applied: whichever images a run uses, a person who is held out for one run is held
    out for all, and adding images to the corpus changes nothing about it. Raises CorpusError when there is nothing to train
    on, CorpusError when the filter is wrong or leaves nothing.
    """
    datasets, log = corpus_datasets(context), context.say_once  # once more for the final validation
    table = corpus_table(datasets)
    if not len(table):
        raise CorpusError(
            f"No usable case in {', '.join(s.folder for s in datasets)}. left_out_images.json beside it lists the "
            "images that could not be used, with the reasons."
        )
    persons, own = subject_of_image(table), context.plans_manager.dataset_name
    for dataset in datasets:
        cases = table.loc[table["source"] == dataset.name, "case"]
        require_case_names(
            cases, dataset.folder, f"Remove their files from {dataset.folder}, or the folder, and preprocess again."
        )
    kept = set(persons)
    if context.settings.filter is not None:
        kept, sentence = apply_filter(datasets, context.settings.filter)
        log(sentence)
    if context.fold == "all":
        training, validation = stable_split(persons, persons, join(nnUNet_preprocessed, own, _memory(datasets)))
    else:
        require_splits(join(nnUNet_preprocessed, own, SPLITS))
        with enough_for_folds():
            of_training, of_validation = of_fold()
        validation = [f"{own}/{case}" for case in of_validation]
        tested = {persons[i] for i in validation if i in persons}
        ending = context.dataset_json["file_ending"]
        without_label = _in_no_fold(own, ending, persons, [*of_training, *of_validation])
        own_training = {f"{own}/{case}" for case in (*of_training, *without_label)}
        training = [i for i in persons if i in own_training or not i.startswith(f"{own}/")]
        shown = [i for i in training if persons[i] in tested]
        if shown:
            log(
                f"{len(shown)} training images show people whom fold {context.fold} is validated on; they are left out."
            )
            training = [i for i in training if persons[i] not in tested]
    training, validation = ([i for i in side if i in kept] for side in (training, validation))
    if not training and context.fold != "all":
        raise CorpusError(
            f"No training image of fold {context.fold} is left. Use -f all, another fold or another filter."
        )
    if not training or not validation:
        training, validation = split_by_subject([*training, *validation], persons)
    if set(training) & set(validation):
        log("WARNING: There is only one subject. The validation loss is computed on training images.")
    used = {*training, *validation}
    log(
        f"{_number(used, persons)}; {_number(validation, persons)} {'is' if len(validation) == 1 else 'are'} held out to "
        "watch the loss."
    )
    return training, validation


def _number(images: Collection[str], persons: Mapping[str, str]) -> str:
    return f"{counted(len(images), 'image')} of {counted(len({persons[i] for i in images}), 'subject')}"


def _in_no_fold(own: str, ending: str, identifiers: Iterable[str], listed: Iterable[str]) -> set[str]:
    """The cases without a label, which folds for fine-tuning do not list; a labelled one that is in no fold is meant so."""
    labels = join(nnUNet_preprocessed, own, LABELS)
    if not isdir(labels):
        return set()
    labelled = {file.removesuffix(ending) for file in os.listdir(labels)}
    cases = {i.removeprefix(f"{own}/") for i in identifiers if i.startswith(f"{own}/")}
    return cases - set(listed) - labelled


def _memory(datasets: list[CorpusDataset]) -> str:
    """The file that remembers the held-out people of a corpus, in the folder of its first data set."""
    others = "_".join(str(dataset_id(dataset.name)) for dataset in datasets[1:])
    return f"held_out_subjects{f'_with_{others}' if others else ''}.json"


def share_of_batch(total: int, processes: int, micro_batches: int) -> int:
    """Samples of one process' batch, which goes through the network in micro-batches; raises SettingsError where it is uneven."""
    if total % (processes * micro_batches):
        number = processes * micro_batches
        sharers = [f"{processes} processes"] * (processes > 1) + [f"{micro_batches} micro-batches (accumulate)"] * (
            micro_batches > 1
        )
        raise SettingsError(
            f"A batch of {total} cannot be shared evenly by {' of '.join(sharers)}. "
            f"Use a multiple of {number}: --batch-size {-(-total // number) * number}"
        )
    return total // processes


def finishes(device: torch.device) -> bool:
    """Whether a device rotates, scales and mirrors what reading processes send it, see `finishing`."""
    return device.type == "cuda"


def build_loader(
    context: LoaderContext, identifiers: list[str], stream: int, steps: range
) -> Iterator[Mapping[str, Any]]:
    """Batches of this process for the given steps.

    The validation stream repeats its steps for ever, unaugmented, with all images alike.
    """
    workers, settings, training = get_allowed_n_proc_DA(), context.settings, stream == TRAINING
    datasets = corpus_datasets(context)
    corpus = Corpus(datasets, identifiers)
    dataset = PatchDataset(
        corpus,
        context.views,
        augmentation(context) if training else Augmentation(context.views.region_size),
        PatchSampler(corpus, settings.min_foreground),
        seed=settings.seed,
        stream=stream,
        separate_channels=settings.channels == "separate",
        weights=weights_for(datasets, corpus.identifiers, settings.sampling) if training else None,
        finish_later=finishes(context.device),
    )
    offset = dist.get_rank() * context.batch_size if context.is_ddp else 0
    positions = Positions(steps, context.total_batch_size, context.batch_size, offset, repeat=stream == VALIDATION)
    if training:
        return load_batches(dataset, positions, workers, context.device)
    return load_batches(dataset, positions, -(-workers // 2), context.device, ahead=2)  # ready since the last epoch
