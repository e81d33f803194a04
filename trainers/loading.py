"""From a trainer's plans to its batches: where the data lie, how they are augmented, which process gets what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from os.path import isdir, isfile, join
from typing import TYPE_CHECKING, Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import distributed as dist

from nnunet_ssl.corpus.subjects import split_by_subject, subject_of
from nnunet_ssl.trainers.data import TRAINING, VALIDATION, Corpus, PatchDataset, Positions, Source, load_batches

if TYPE_CHECKING:
    from nnunet_ssl.trainers.ssl_trainer import SSLTrainer


def corpus_sources(trainer: SSLTrainer) -> list[Source]:
    """The preprocessed data sets of a run; raises FileNotFoundError saying how to make the missing ones."""
    sources = []
    for name in (trainer.plans_manager.dataset_name, *trainer.settings.datasets):
        folder = join(nnUNet_preprocessed, name, trainer.configuration_manager.data_identifier)
        dataset_json = join(nnUNet_preprocessed, name, "dataset.json")
        if not isdir(folder) or not isfile(dataset_json):
            raise FileNotFoundError(
                f"There are no preprocessed data in {folder}. Run nnUNetv2_preprocess -d {int(name[7:10])} "
                f"-plans_name {trainer.plans_manager.plans_name} -c {trainer.configuration_name}, or let "
                "nnUNetv2_pretrain do what is missing."
            )
        label = load_json(dataset_json).get("labels", {}).get("anonymised")
        sources.append(Source(name, folder, label if isinstance(label, int) else None))
    return sources


def split_corpus(
    trainer: SSLTrainer, of_fold: Callable[[], tuple[list[str], list[str]]]
) -> tuple[list[str], list[str]]:
    """(training, validation) identifiers of a run, see `SSLTrainer.do_split`; `of_fold` is nnU-Net's own split.

    Raises RuntimeError when there is nothing to train on.
    """
    sources = corpus_sources(trainer)
    everything = Corpus.all_identifiers(sources)
    if not everything:
        raise RuntimeError(
            f"No usable case in {', '.join(s.folder for s in sources)}. left_out_images.json beside it lists the "
            "images that could not be used, with the reasons."
        )
    if trainer.fold != "all":
        own = trainer.plans_manager.dataset_name
        training, validation = of_fold()
        others = [i for i in everything if not i.startswith(f"{own}/")]
        return [f"{own}/{c}" for c in training] + others, [f"{own}/{c}" for c in validation]
    subjects = {i: f"{i.split('/', 1)[0]}/{subject_of(i.split('/', 1)[1])}" for i in everything}
    training, validation = split_by_subject(everything, subjects)
    held_out = len({subjects[i] for i in validation})
    if set(training) & set(validation):
        trainer.print_to_log_file(
            "WARNING: There is only one subject. The validation loss is computed on training images."
        )
    trainer.print_to_log_file(
        f"{len(everything)} images of {len(set(subjects.values()))} subjects; {len(validation)} images of "
        f"{held_out} subjects are held out to watch the loss."
    )
    return training, validation


def share_of_batch(total: int, processes: int, parts: int) -> int:
    """Samples of one process' batch, which goes through the network in `parts`; raises ValueError where it is uneven."""
    if total % (processes * parts):
        number = processes * parts
        sharers = [f"{processes} processes"] * (processes > 1) + [f"{parts} accumulated parts"] * (parts > 1)
        raise ValueError(
            f"A batch of {total} cannot be shared evenly by {' of '.join(sharers)}. "
            f"Use a multiple of {number}: --batch-size {-(-total // number) * number}"
        )
    return total // processes


def augmentation(trainer: SSLTrainer) -> tuple[list[Any], tuple[int, ...]]:
    """nnU-Net's rotation, scaling and mirroring, as far as the method wants them, and the size to read for them.

    Probabilities and ranges are nnU-Net's. Interpolation is linear, batchgeneratorsv2's way; nnssl's is cubic.
    """
    views, size = trainer.views, trainer.views.region_size
    rotation, in_plane, read_size, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms: list[Any] = []
    p = min(0.2 * views.rotate_and_scale, 1.0)
    if p:
        spatial = SpatialTransform(
            size[1:] if in_plane else size,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=p,
            rotation=rotation,
            p_scaling=p,
            scaling=(0.7, 1.4),
            p_synchronize_scaling_across_axes=1,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
        transforms = [Convert3DTo2DTransform(), spatial, Convert2DTo3DTransform()] if in_plane else [spatial]
    if views.mirror:
        transforms.append(MirrorTransform(allowed_axes=axes))
    return transforms, tuple(int(s) for s in read_size) if p else size


def build_loader(trainer: SSLTrainer, identifiers: list[str], stream: int, steps: range) -> Iterator[Mapping[str, Any]]:
    """Batches of this process for the given steps; the validation stream repeats its steps for ever, unaugmented."""
    workers = get_allowed_n_proc_DA()
    transforms, read_size = augmentation(trainer) if stream == TRAINING else ([], trainer.views.region_size)
    dataset = PatchDataset(
        Corpus(corpus_sources(trainer), identifiers),
        trainer.views,
        read_size,
        trainer.label_manager,
        ComposeTransforms([*transforms, RemoveLabelTansform(-1, 0)]),
        seed=trainer.settings.seed,
        stream=stream,
        separate_channels=trainer.settings.channels == "separate",
        oversample_foreground=trainer.oversample_foreground_percent,
    )
    offset = dist.get_rank() * trainer.batch_size if trainer.is_ddp else 0
    positions = Positions(steps, trainer.total_batch_size, trainer.batch_size, offset, repeat=stream == VALIDATION)
    count = workers if stream == TRAINING else -(-workers // 2)
    return load_batches(dataset, positions, count, pin_memory=trainer.device.type == "cuda")
