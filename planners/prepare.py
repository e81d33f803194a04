"""From dataset ids to preprocessed images: fingerprint, plans and preprocessing, only what is missing of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import makedirs
from os.path import isdir, isfile, join
from typing import Any

from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.errors import CorpusError
from nnunet_ssl.corpus.left_out import FILE
from nnunet_ssl.corpus.table import has_table, read_table, write_table
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.planners import ssl_planner
from nnunet_ssl.planners.datasets import (
    load_configuration,
    load_plans,
    plans_file,
    raw_folder,
    raw_images,
    require_folder,
    require_raw,
    resolve_datasets,
)
from nnunet_ssl.planners.distribution import left_out_here
from nnunet_ssl.planners.fingerprint import SSLFingerprintExtractor
from nnunet_ssl.planners.finished import finished_cases
from nnunet_ssl.planners.joint import copy_jointly, have_joint_plans, joint_plans_name, plan_jointly
from nnunet_ssl.planners.normalization import NNUNET, PER_IMAGE, require_style
from nnunet_ssl.planners.ssl_planner import CONFIGURATION, SSLPlanner, require_spacing_style
from nnunet_ssl.planners.storage import STORAGE, require_storage

__all__ = ["prepare_corpus", "resolve_datasets"]


def prepare_corpus(
    dataset_names: Sequence[str | int],
    planner_class: type[SSLPlanner] | str | None = None,
    *,
    plans_name: str | None = None,
    configuration: str = CONFIGURATION,
    spacing: str | None = None,
    patch_size: Sequence[int] | None = None,
    normalization: str | None = None,
    storage: str | None = None,
    num_processes: int = 8,
) -> tuple[dict[str, Any], str]:
    """(plans of the first dataset, their name) when everything is ready for training.

    Plans that exist are used as they are: `spacing` ("onemmiso", "median", "noresample"), `patch_size` [voxels per
    axis], `normalization` ("nnunet", "per_image") and `storage` ("float32", "float16") are for new ones. Without a
    planner, `plans_name` must exist. Several datasets get joint plans of their own, named `<plans>_with_<ids>`.

    Any number of processes, on any number of machines, may call it at once: one plans, all share the preprocessing, and
    it returns when everything is done. Raises CorpusError.
    """
    require_folder("nnUNet_preprocessed")
    names = resolve_datasets(dataset_names)
    planner = find_planner(planner_class) if planner_class is not None else None
    how = planner_settings(spacing, patch_size, normalization, storage)
    if planner is not None:
        if configuration != CONFIGURATION and not _exists(names[0], plans_name):
            raise CorpusError(f"{planner.__name__} plans {CONFIGURATION} only, found -c {configuration}.")
        plans_name = plans_name or name_of_plans(planner, how)
    elif plans_name is None:
        raise CorpusError("Neither a planner nor the name of existing plans is given. Use --backbone or -p.")
    several = len(names) > 1
    base, plans_name = plans_name, joint_plans_name(plans_name, names) if several else plans_name
    makedirs(str(nnUNet_preprocessed), exist_ok=True)
    with Lock(join(nnUNet_preprocessed, f"{min(names)}.planning.lock"), f"planning {min(names)}").waiting():
        if several:
            _plan_several(names, planner, base, plans_name, configuration, how, num_processes)
        else:
            _plan_one(names[0], planner, plans_name, how, num_processes)
    for name in names:
        _preprocess(name, plans_name, configuration, num_processes)
        _keep_table(name)
    return load_plans(names[0], plans_name), plans_name


def find_planner(planner: type[SSLPlanner] | str) -> type[SSLPlanner]:
    """A planner class by its name; raises CorpusError unless it is one of ours or derived from one."""
    if isinstance(planner, str):
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api

        name = planner
        planner = getattr(ssl_planner, name, None) or api.recursive_find_python_class(
            join(api.nnunetv2.__path__[0], "experiment_planning"), name, "nnunetv2.experiment_planning"
        )
    if not (isinstance(planner, type) and issubclass(planner, SSLPlanner) and hasattr(planner, "preset")):
        raise CorpusError(
            f"{planner} is not a planner for pre-training. Use SSLPlannerResEncL, SSLPlannerPrimusM, SSLPlannerResEncTiny "
            "or SSLPlannerPrimusTiny; with nnU-Net's planners run nnUNetv2_plan_experiment and name the plans with -p."
        )
    return planner


def planner_settings(
    spacing: str | None, patch_size: Sequence[int] | None, normalization: str | None, storage: str | None
) -> dict[str, Any]:
    """Settings of a planner, with the defaults of those that are None; raises CorpusError for what is none."""
    return {
        "spacing_style": require_spacing_style(spacing or "onemmiso"),
        "patch_size": patch_size,
        "normalization": require_style(normalization or NNUNET),
        "storage": require_storage(storage or STORAGE[0]),
    }


def name_of_plans(planner: type[SSLPlanner], how: Mapping[str, Any]) -> str:
    """The name of the plans that a planner writes with these settings (see `planner_settings`)."""
    # Other images or patches under the usual name would change the plans of runs that are already under way.
    name = planner.plans_name_for(how["spacing_style"])
    name += "_perimage" if how["normalization"] == PER_IMAGE else ""
    name += f"_{how['storage']}" if how["storage"] != STORAGE[0] else ""
    return name if how["patch_size"] is None else f"{name}_patch{'x'.join(map(str, how['patch_size']))}"


def plans_in_use(
    dataset_names: Sequence[str | int],
    planner_class: str | None,
    plans_name: str | None,
    spacing: str | None,
    normalization: str | None,
    storage: str | None,
) -> tuple[str, str]:
    """(first data set, name of the plans) of what `prepare_corpus` prepares with these arguments; looks at no image."""
    names = resolve_datasets(dataset_names)
    if plans_name is None:
        assert planner_class is not None
        plans_name = name_of_plans(find_planner(planner_class), planner_settings(spacing, None, normalization, storage))
    return names[0], joint_plans_name(plans_name, names) if len(names) > 1 else plans_name


def _exists(name: str, plans_name: str | None) -> bool:
    return plans_name is not None and isfile(plans_file(name, plans_name))


def _plan_one(
    name: str,
    planner: type[SSLPlanner] | None,
    plans_name: str,
    how: Mapping[str, Any],
    num_processes: int,
) -> None:
    if _exists(name, plans_name) or planner is None:
        load_plans(name, plans_name)
        print(f"{name}: using the plans {plans_name} that are there.")
        return
    ensure_fingerprint(name, num_processes)
    planner(name, plans_name=plans_name, **how).plan_experiment()


def _plan_several(
    names: Sequence[str],
    planner: type[SSLPlanner] | None,
    base: str,
    plans_name: str,
    configuration: str,
    how: Mapping[str, Any],
    num_processes: int,
) -> None:
    if have_joint_plans(names, plans_name):
        print(f"{', '.join(names)}: using the joint plans {plans_name} that are there.")
        return
    from_existing = planner is None
    if from_existing:
        load_configuration(load_plans(names[0], base), configuration)
    for name in names:
        ensure_fingerprint(name, num_processes)
    if planner is None:
        copy_jointly(names, base, configuration, plans_name)
        print(f"{', '.join(names)}: joint plans {plans_name}, made from {base} of {names[0]}.")
    else:
        plan_jointly(names, planner, plans_name, **how)
        print(f"{', '.join(names)}: joint plans {plans_name}.")


def ensure_fingerprint(name: str, num_processes: int) -> None:
    """Extract the fingerprint of a dataset unless it is there; raises CorpusError without raw images."""
    if isfile(join(nnUNet_preprocessed, name, "dataset_fingerprint.json")):
        print(f"{name}: using the fingerprint that is there.")
        return
    require_raw(name, "the fingerprint")
    print(f"{name}: extracting the fingerprint.")
    SSLFingerprintExtractor(name, num_processes).run()


def _preprocess(name: str, plans_name: str, configuration: str, num_processes: int) -> None:
    settings = load_configuration(load_plans(name, plans_name), configuration)
    folder = join(nnUNet_preprocessed, name, settings["data_identifier"])
    images = raw_images(name)
    own = settings["preprocessor_name"] == "SSLPreprocessor"
    done = finished_cases(folder) if own else _stock_cases(folder)
    if images is None and not done:
        require_raw(name, f"preprocessing {settings['data_identifier']}")
    missing = set(images or {}) - done
    if own and images is not None:
        step = f"preprocessing {settings['data_identifier']}"
        missing -= left_out_here(join(nnUNet_preprocessed, name), images, step)
    if images is None:
        print(f"{name}: the raw images are not there; using the {len(done)} preprocessed ones in {folder}.")
    elif not missing:
        left_out = len(images.keys() - done)
        print(
            f"{name}: {len(done)} preprocessed images are there{f', {left_out} left out ({FILE})' if left_out else ''}."
        )
    elif own:
        print(f"{name}: preprocessing {len(missing)} of {len(images)} images for {plans_name}, {configuration}.")
        preprocess_dataset(dataset_id(name), plans_name, (configuration,), (num_processes,))
    elif done:
        print(
            f"WARNING: {name}: {len(missing)} of {len(images)} images are not preprocessed for {plans_name}; using the "
            f"{len(done)} that are. For all of them: nnUNetv2_preprocess -d {dataset_id(name)} -plans_name {plans_name} "
            f"-c {configuration}"
        )
    else:
        _stock_preprocess(name, plans_name, configuration, images or {}, num_processes)


def _keep_table(name: str) -> None:
    """Copy the corpus table beside the preprocessed images, for machines on which the raw data set is not."""
    raw = raw_folder(name)
    if raw is not None and has_table(raw):
        write_table(read_table(raw, with_problems=True), join(nnUNet_preprocessed, name))


def _stock_preprocess(
    name: str, plans_name: str, configuration: str, images: dict[str, dict[str, Any]], num_processes: int
) -> None:
    unlabelled = [case for case, files in images.items() if files["label"] is None]
    if unlabelled:
        raise CorpusError(
            f"{plans_name} is preprocessed by nnU-Net's own preprocessor, which needs a label for every image; "
            f"{len(unlabelled)} of {len(images)} images of {name} have none, e.g. {unlabelled[0]}. Put the images without "
            f"labels into a dataset of their own and pre-train on both: nnUNetv2_pretrain {dataset_id(name)} ID "
            f"-p {plans_name}; or use the planners for pre-training: --backbone resenc_l"
        )
    print(f"{name}: preprocessing {len(images)} images for {plans_name}, {configuration}, as nnU-Net does.")
    preprocess_dataset(dataset_id(name), plans_name, (configuration,), (num_processes,))


def _stock_cases(folder: str) -> set[str]:
    """The cases nnU-Net finds in a preprocessed folder."""
    if not isdir(folder):
        return set()
    try:
        return set(infer_dataset_class(folder).get_identifiers(folder))
    except (AssertionError, KeyError):
        return set()
