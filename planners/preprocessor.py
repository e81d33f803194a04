"""nnU-Net's preprocessing for images with or without labels: faster, by many processes, undisturbed by bad files."""

from __future__ import annotations

import os
from collections.abc import Collection
from os.path import isfile, join
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.corpus.check import check_cropped_shape
from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.datasets import load_plans, require_raw
from nnunet_ssl.corpus.images import list_images, read_dataset_json, shortened
from nnunet_ssl.corpus.left_out import FILE, read_left_out, report
from nnunet_ssl.corpus.reading import NOT_FINITE, describe_failure, read_case, read_label
from nnunet_ssl.corpus.stamps import digest_of
from nnunet_ssl.errors import CorpusError, UnusableImage
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.folders import require_writable
from nnunet_ssl.files.participants import Participant
from nnunet_ssl.messages import say_errors_in_one_line
from nnunet_ssl.planners.plans_check import require_complete
from nnunet_ssl.planners.preprocessing.case import preprocess_case, reason_against
from nnunet_ssl.planners.preprocessing.normalization import MODALITY, add_modalities
from nnunet_ssl.planners.preprocessing.storage import save_case, storage_dtype
from nnunet_ssl.planners.sharing.distribution import (
    Distribution,
    left_out_here,
    record,
    record_labels,
    state_folder,
    step_of,
    summary,
)
from nnunet_ssl.planners.sharing.finished import finished_cases, put_in_place, relevant_settings
from nnunet_ssl.planners.sharing.follow import follow_dataset_json, planning_lock
from nnunet_ssl.planners.sharing.labels import copy_labels
from nnunet_ssl.planners.sharing.start import settle, start_or_continue
from nnunet_ssl.planners.sharing.workers import Died, work_off
from nnunet_ssl.progress_bars import progress_bar


def require_some(name: str, number: int, folder: str) -> None:
    """Raise CorpusError with the reasons when no image of a data set could be used."""
    if number == 0:
        left_out = read_left_out(folder)
        reasons = shortened([f"{case}: {entry['reason']}" for case, entry in left_out.items()])
        raise CorpusError(
            f"None of the {len(left_out)} images of {name} can be used:\n{reasons}\nAll of them are in {join(folder, FILE)}. "
            f"Replace them, or have them tried as they are: nnUNetv2_pretrain_corpus -d {dataset_id(name)} --forget all"
        )


class Made(NamedTuple):
    """The result of a case that is in place; `digest` stands for what its files hold.

    `bad_label` is why its label is not used, None where it is, or where there is none.
    """

    digest: str
    bad_label: str | None = None


class SSLPreprocessor(DefaultPreprocessor):
    """DefaultPreprocessor, with the same result, case by case; unusable images are left out, finished cases are kept.

    Any number of processes on any number of machines may run it on the same folder at once. Images without a label get
    nnU-Net's own substitute: 0 inside and -1 outside the non-zero region. For prediction there are no checks.
    """

    def __init__(self, verbose: bool = True) -> None:
        super().__init__(verbose)
        self.checks = False
        self.bad_label: str | None = None  # of the case that is worked on
        self.wanted: Collection[str] | None = None  # the cases to make now, all by default; others stay as they are

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """As in DefaultPreprocessor; while preparing training data, raises UnusableImage for what fails a check."""
        described: dict[str, Any] = read_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
        if self.checks:
            reason = reason_against(data, seg, properties, plans_manager, configuration_manager)
            if reason:
                raise UnusableImage(reason)
        data, seg, properties = preprocess_case(
            self, data, seg, properties, plans_manager, configuration_manager, described, training=self.checks
        )
        if self.checks:
            properties.setdefault("class_locations", {})
            reason = check_cropped_shape(properties["shape_after_cropping_and_before_resampling"])
            if reason:
                raise UnusableImage(reason)
        return data, seg, properties

    def run_case(
        self, image_files: list[str], *args: Any, **kwargs: Any
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """As in DefaultPreprocessor; while preparing training data, whatever goes wrong becomes UnusableImage."""
        if not self.checks:
            return super().run_case(image_files, *args, **kwargs)
        try:
            return self._read_and_run(image_files, *args, **kwargs)
        except (MemoryError, UnusableImage, CorpusError):
            raise
        except Exception as error:
            raise UnusableImage(describe_failure(error)) from error

    def _read_and_run(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any],
        modality: str | None,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        reader = plans_manager.image_reader_writer_class
        data, properties = read_case(reader, image_files)
        seg, self.bad_label = read_label(reader, seg_file, data.shape)
        if modality is not None:
            properties[MODALITY] = modality
        return self.run_case_npy(data, seg, properties, plans_manager, configuration_manager, dataset_json)

    def run_case_save(
        self,
        output_filename_truncated: str,
        image_files: list[str],
        seg_file: str | None,
        modality: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any],
        output: str,
    ) -> str | Made:
        """Preprocess and save one case, its .pkl last, and move it to the folder `output` when it is whole.

        Returns the reason when the image is unusable.
        """
        work, case = os.path.split(output_filename_truncated)
        dtype = storage_dtype(configuration_manager.configuration)
        self.checks = True
        try:
            data, seg, properties = self.run_case(
                image_files, seg_file, plans_manager, configuration_manager, dataset_json, modality
            )
            path, patch_size = output_filename_truncated, configuration_manager.patch_size
            for remains in (f"{path}.b2nd", f"{path}_seg.b2nd"):  # of an attempt that died
                if isfile(remains):
                    os.remove(remains)
            save_case(data, seg, properties, path, patch_size, dtype)
        except UnusableImage as error:
            return str(error)
        finally:
            self.checks = False
        made = Made(digest_of([*image_files, seg_file]), self.bad_label)
        put_in_place(output, case, work)
        if NOT_FINITE in properties:
            print(f"{case}: {properties[NOT_FINITE]} values are NaN or infinite and count as 0.", flush=True)
        return made

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> None:
        """Preprocess what is not finished yet and nobody else is at, and wait for the others' share.

        Raises CorpusError when no case is usable.
        """
        from nnunet_ssl.integration.unlabelled import limit_label_copy

        say_errors_in_one_line()  # of nnU-Net's commands as well
        name = maybe_convert_to_dataset_name(dataset_name_or_id)
        raw, folder = require_raw(name, "preprocessing"), join(nnUNet_preprocessed, name)
        load_plans(name, plans_identifier)
        # Of the raw data, not of their copy in nnUNet_preprocessed: images may have been added since the planning.
        dataset_json = read_dataset_json(raw)
        cases = list_images(raw, dataset_json)
        add_modalities(cases, raw)
        with planning_lock(name).waiting():
            follow_dataset_json(name, raw, dataset_json)
        plans_manager = PlansManager(load_plans(name, plans_identifier))
        configuration = plans_manager.get_configuration(configuration_name)
        require_writable(join(folder, configuration.data_identifier))
        require_complete(plans_manager.plans, configuration.configuration, configuration_name)
        storage_dtype(configuration.configuration)  # a wrong one shows now
        # With tens of thousands of cases this entry would be megabytes, sent to every worker.
        dataset_json.pop("dataset", None)

        output = join(folder, configuration.data_identifier)
        settings = relevant_settings(plans_manager.plans, configuration.configuration, dataset_json)
        changes = start_or_continue(output, settings, cases, name)
        finished = finished_cases(output)
        step = step_of(output)
        bad = left_out_here(folder, cases, step) - finished
        todo = [case for case in cases if case not in finished and case not in bad]
        if self.wanted is not None:
            spared = len(todo)
            todo = [case for case in todo if case in self.wanted]
            if spared > len(todo):
                print(f"{spared - len(todo)} cases that the filter leaves out are not preprocessed.")
        if finished:
            print(f"{len(finished)} of {len(cases)} cases are finished already, and made from what is there now.")
        if bad:
            again = f"nnUNetv2_pretrain_corpus -d {dataset_id(name)} --forget CASE"
            print(f"{len(bad)} cases are left out as before. To try one again: {again}")
        with Participant(state_folder(output)) as participant:
            participant.forget_claims(but=set(todo))
            distribution = Distribution(participant, output, folder, cases, todo, step, changes.before)
            shared = (plans_manager, configuration, dataset_json, output)
            self._work_off(distribution, len(todo), num_processes, shared)
        settle(output)
        found = distribution.left_out
        if found:
            print(f"{report(found, len(cases), folder)}\nIn short: {summary(found)}.")
        require_some(name, len(finished_cases(output)), folder)
        copy_labels(name, cases, dataset_json["file_ending"])
        limit_label_copy()

    def _work_off(self, distribution: Distribution, number: int, num_processes: int, shared: tuple[Any, ...]) -> None:
        examined: set[str] = set()
        bad_labels: dict[str, str] = {}
        hidden = not (self.show_progress_bar and number)
        try:
            with progress_bar(desc="Preprocessing cases", total=number, disable=hidden) as bar:
                results = work_off(self.run_case_save, iter(distribution), num_processes, shared)
                for case, result in results:
                    examined.add(case)
                    if isinstance(result, Made):
                        bad_labels |= {case: result.bad_label} if result.bad_label else {}
                        distribution.origins.finish(case, result.digest)
                        distribution.participant.release(case)
                    else:
                        distribution.refuse(case, result.reason if isinstance(result, Died) else result)
                    bar.n = len(examined) + distribution.by_others
                    bar.refresh()
        finally:
            record(distribution.base, examined, distribution.left_out)
            record_labels(distribution.base, examined, bad_labels, distribution.cases)
