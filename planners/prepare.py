"""From dataset ids to preprocessed images: fingerprint, plans and preprocessing, only what is missing of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import makedirs
from os.path import isfile, join
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.datasets import (
    load_configuration,
    load_plans,
    plans_file,
    raw_folder,
    require_raw,
    resolve_datasets,
)
from nnunet_ssl.corpus.folders import require_folder
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.corpus.left_out import FILE
from nnunet_ssl.corpus.table import FILE as TABLE
from nnunet_ssl.corpus.table import has_table
from nnunet_ssl.errors import CannotWrite, CorpusError
from nnunet_ssl.files.atomic import copy_file
from nnunet_ssl.files.folders import is_writable, require_writable
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.files.torn import is_whole
from nnunet_ssl.messages import counted
from nnunet_ssl.planners import ssl_planner
from nnunet_ssl.planners.fingerprint import SSLFingerprintExtractor
from nnunet_ssl.planners.joint import copy_jointly, have_joint_plans, joint_plans_name, plan_jointly
from nnunet_ssl.planners.plans_check import require_complete
from nnunet_ssl.planners.preprocessing.normalization import NNUNET, PER_IMAGE, add_modalities, require_style
from nnunet_ssl.planners.preprocessing.storage import STORAGE, require_storage
from nnunet_ssl.planners.preprocessor import SSLPreprocessor, require_some
from nnunet_ssl.planners.sharing.changes import compare, no_collection
from nnunet_ssl.planners.sharing.distribution import left_out_here, step_of
from nnunet_ssl.planners.sharing.finished import finished_cases, relevant_settings, stock_cases
from nnunet_ssl.planners.sharing.follow import planning_lock
from nnunet_ssl.planners.sharing.labels import copy_labels
from nnunet_ssl.planners.sharing.start import differing, stored_settings
from nnunet_ssl.planners.ssl_planner import CONFIGURATION, SSLPlanner, require_spacing_style
from nnunet_ssl.planners.wanted import wanted_cases

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
    expression: str | None = None,
    check: Callable[[dict[str, Any], str], None] | None = None,
) -> tuple[dict[str, Any], str]:
    """(plans of the first dataset, their name) when everything is ready for training.

    Plans that exist are used as they are: `spacing` ("onemmiso", "median", "noresample"), `patch_size` [voxels per
    axis], `normalization` ("nnunet", "per_image") and `storage` ("float32", "float16") are for new ones. Without a
    planner, `plans_name` must exist. Several datasets get joint plans of their own, named `<plans>_with_<ids>`.

    `expression` is the run's filter: where tables tell which images match, no others are preprocessed now.
    `check` is given the plans and their name before any image is preprocessed; what it raises ends this.

    Any number of processes, on any number of machines, may call it at once: one plans, all share the preprocessing, and
    it returns when everything is done. Raises CorpusError.
    """
    require_folder("nnUNet_preprocessed")
    names = resolve_datasets(dataset_names)
    wanted = wanted_cases(names, expression)
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
    with _alone(planning_lock(min(names))):
        if several:
            _plan_several(names, planner, base, plans_name, configuration, how, num_processes)
        else:
            _plan_one(names[0], planner, plans_name, how, num_processes)
    for name in names:
        plans = load_plans(name, plans_name)
        require_complete(plans, load_configuration(plans, configuration), configuration)
    if check is not None:
        check(load_plans(names[0], plans_name), plans_name)
    for name in names:
        _preprocess(name, plans_name, configuration, num_processes, wanted.get(name))
        _keep_table(name)
    return load_plans(names[0], plans_name), plans_name


@contextmanager
def _alone(lock: Lock) -> Iterator[None]:
    """Hold a lock in nnUNet_preprocessed; where nothing can be written nobody can change anything, and none is needed."""
    folder = str(nnUNet_preprocessed)
    try:
        require_writable(folder)
    except CannotWrite as error:
        print(f"Only what is prepared already can be used: {error}")
        yield
        return
    makedirs(folder, exist_ok=True)
    with lock.waiting():
        yield


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
            f"{planner} is not a planner for pre-training. Use SSLPlannerResEncL, SSLPlannerPrimusM, SSLPlannerPrimusX, "
            "SSLPlannerResEncTiny or SSLPlannerPrimusTiny; with nnU-Net's planners run nnUNetv2_plan_experiment and name the "
            "plans with -p."
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
    there = is_whole(plans_file(name, plans_name)) if planner is not None else _exists(name, plans_name)
    if there or planner is None:
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
    if is_whole(join(nnUNet_preprocessed, name, "dataset_fingerprint.json")):
        print(f"{name}: using the fingerprint that is there.")
        return
    require_raw(name, "the fingerprint")
    print(f"{name}: extracting the fingerprint.")
    SSLFingerprintExtractor(name, num_processes).run()


def _preprocess(
    name: str, plans_name: str, configuration: str, num_processes: int, wanted: Collection[str] | None
) -> None:
    plans = load_plans(name, plans_name)
    settings = load_configuration(plans, configuration)
    own = settings["preprocessor_name"] == "SSLPreprocessor"
    folder = join(nnUNet_preprocessed, name, settings["data_identifier"])
    raw = raw_folder(name)
    if raw is None:
        _use_what_is_there(name, plans, settings, folder, own)
        return
    with no_collection():
        dataset_json = read_dataset_json(raw)
        cases = list_images(raw, dataset_json)
        add_modalities(cases, raw)
        ready = own and _nothing_to_do(name, plans, settings, folder, dataset_json, cases, wanted)
    if own:
        if ready:
            copy_labels(name, cases, dataset_json["file_ending"])
        else:
            print(
                f"{name}: preprocessing for {plans_name}, {configuration}; {counted(len(cases), 'image')}.", flush=True
            )
            preprocessor = SSLPreprocessor(verbose=False)
            preprocessor.wanted = wanted
            preprocessor.run(name, configuration, plans_name, num_processes)
    elif stock_cases(folder):
        _warn_about_stock(name, plans_name, configuration, folder, cases)
        copy_labels(name, cases, dataset_json["file_ending"])
    else:
        _stock_preprocess(name, plans_name, configuration, cases, num_processes)
        copy_labels(name, cases, dataset_json["file_ending"])


def _nothing_to_do(
    name: str,
    plans: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: str,
    dataset_json: Mapping[str, Any],
    cases: Mapping[str, Mapping[str, Any]],
    wanted: Collection[str] | None,
) -> bool:
    """Whether everything is preprocessed, with these settings and from the files that are there; says so."""
    base = join(nnUNet_preprocessed, name)
    if differing(relevant_settings(plans, settings, dataset_json), stored_settings(folder)):
        return False
    if not is_whole(join(base, "dataset.json")):
        return False
    changes = compare(folder, cases)
    left_out = left_out_here(base, cases, step_of(folder)) - changes.finished
    missing = [c for c in cases if c not in changes.finished and c not in left_out and (wanted is None or c in wanted)]
    if changes.changed or changes.gone or missing:
        return False
    if changes.to_write and is_writable(folder):  # files of the same content that have moved: no reason to need a disk
        return False
    require_some(name, len(changes.finished), base)
    more = f", {len(left_out)} left out ({FILE})" if left_out else ""
    print(f"{name}: {len(changes.finished)} preprocessed images are there{more}.")
    return True


def _use_what_is_there(
    name: str, plans: Mapping[str, Any], settings: Mapping[str, Any], folder: str, own: bool
) -> None:
    done = finished_cases(folder) if own else stock_cases(folder)
    if not done:
        require_raw(name, f"preprocessing {settings['data_identifier']}")
    print(f"{name}: the raw images are not there; using the {len(done)} preprocessed ones in {folder}.")
    stored = stored_settings(folder)
    changed = differing(relevant_settings(plans, settings, stored), stored) if own and stored else []
    if changed:
        raise CorpusError(
            f"The images in {folder} were made with other settings than {plans['plans_name']} says now "
            f"({', '.join(changed)}). Undo the change, or put the raw images back to have them made anew."
        )


def _warn_about_stock(
    name: str, plans_name: str, configuration: str, folder: str, cases: Mapping[str, Mapping[str, Any]]
) -> None:
    done, changes = stock_cases(folder), compare(folder, cases)
    number = dataset_id(name)
    again = f"nnUNetv2_preprocess -d {number} -plans_name {shlex.quote(plans_name)} -c {shlex.quote(configuration)}"
    missing, gone = cases.keys() - done, sorted(done - cases.keys())
    if missing:
        print(
            f"WARNING: {name}: {len(missing)} of {len(cases)} images are not preprocessed for {plans_name}; using the "
            f"{len(done)} that are. For all of them: {again}"
        )
    if changes.changed:
        print(
            f"WARNING: {name}: the files of {len(changes.changed)} cases are newer than what nnU-Net made of them, e.g. "
            f"{next(iter(changes.changed))}. To make all anew: {again}"
        )
    if gone:
        print(
            f"WARNING: {name}: {len(gone)} preprocessed cases are no longer in {name} and are still trained on, e.g. {gone[0]}. "
            f"To remove them: nnUNetv2_pretrain_corpus -d {number} --forget {shlex.join(gone[:5])}"
        )
    if not missing:
        print(f"{name}: {len(done)} preprocessed images are there.")


def _keep_table(name: str) -> None:
    """Copy the corpus table beside the preprocessed images, for machines on which the raw data set is not."""
    raw, folder = raw_folder(name), join(nnUNet_preprocessed, name)
    if raw is None or not has_table(raw):
        return
    source, copy = Path(raw, TABLE), Path(folder, TABLE)
    if has_table(folder) and _same_file(source, copy):
        return
    try:
        copy_file(source, copy)
    except CannotWrite as error:
        print(f"{name}: the table of the corpus is not copied: {error}")


def _same_file(one: Path, other: Path) -> bool:
    a, b = one.stat(), other.stat()
    return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


def _stock_preprocess(
    name: str, plans_name: str, configuration: str, images: dict[str, dict[str, Any]], num_processes: int
) -> None:
    unlabelled = [case for case, files in images.items() if files["label"] is None]
    if unlabelled:
        raise CorpusError(
            f"{plans_name} is preprocessed by nnU-Net's own preprocessor, which needs a label for every image; "
            f"{len(unlabelled)} of {len(images)} images of {name} have none, e.g. {unlabelled[0]}. Put the images without "
            f"labels into a dataset of their own and pre-train on both: nnUNetv2_pretrain {dataset_id(name)} ID "
            f"-p {shlex.quote(plans_name)}; or use the planners for pre-training: --backbone resenc_l"
        )
    print(f"{name}: preprocessing {counted(len(images), 'image')} for {plans_name}, {configuration}, as nnU-Net does.")
    manager = PlansManager(load_plans(name, plans_name)).get_configuration(configuration)
    # By its name: nnU-Net's own function takes a number, and 123 for the beginning of 1234.
    manager.preprocessor_class(verbose=False).run(name, configuration, plans_name, num_processes=max(1, num_processes))
