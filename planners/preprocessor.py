"""nnU-Net's preprocessing for images with or without labels that survives bad files and interruptions."""

from __future__ import annotations

import os
from os.path import isdir, isfile, join
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ssl.corpus.check import check_cropped_shape, check_image, check_resampled_shape
from nnunet_ssl.corpus.errors import CorpusError, UnusableImage
from nnunet_ssl.corpus.images import list_images, read_dataset_json, shortened
from nnunet_ssl.corpus.left_out import describe, report, update_left_out
from nnunet_ssl.corpus.parallel import work_through
from nnunet_ssl.corpus.reading import damage, describe_failure
from nnunet_ssl.planners.finished import (
    STATE,
    discard,
    finished_cases,
    put_in_place,
    relevant_settings,
    start_or_continue,
)


class SSLPreprocessor(DefaultPreprocessor):
    """DefaultPreprocessor case by case; unusable images are reported and left out, finished cases are kept.

    Images without a label get nnU-Net's own substitute: 0 inside and -1 outside the non-zero region. For prediction
    it is the DefaultPreprocessor, with no checks.
    """

    def __init__(self, verbose: bool = True) -> None:
        super().__init__(verbose)
        self.checks = False

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
        if self.checks:
            reason = self._reason_against(data, seg, properties, plans_manager, configuration_manager)
            if reason:
                raise UnusableImage(reason)
        result = super().run_case_npy(data, seg, properties, plans_manager, configuration_manager, dataset_json)
        if self.checks:
            properties.setdefault("class_locations", {})
            reason = check_cropped_shape(properties["shape_after_cropping_and_before_resampling"])
            if reason:
                raise UnusableImage(reason)
        return result

    def run_case(
        self, image_files: list[str], *args: Any, **kwargs: Any
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """As in DefaultPreprocessor; while preparing training data, whatever goes wrong becomes UnusableImage."""
        if not self.checks:
            return super().run_case(image_files, *args, **kwargs)
        try:
            for path in image_files:
                reason = damage(path)
                if reason:
                    raise UnusableImage(reason)
            return super().run_case(image_files, *args, **kwargs)
        except (MemoryError, UnusableImage):
            raise
        except Exception as error:
            raise UnusableImage(describe_failure(error)) from error

    def run_case_save(self, output_filename_truncated: str, *args: Any, **kwargs: Any) -> str | None:
        """Preprocess and save one case, its .pkl last; returns the reason when the image is unusable, None otherwise."""
        folder, case = os.path.split(output_filename_truncated)
        self.checks = True
        try:
            super().run_case_save(join(folder, STATE, case), *args, **kwargs)
        except UnusableImage as error:
            return str(error)
        finally:
            self.checks = False
        put_in_place(folder, case)
        return None

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> None:
        """Preprocess what is not finished yet; raises CorpusError when no case is usable."""
        from nnunet_ssl.integration.unlabelled import limit_label_copy

        name = maybe_convert_to_dataset_name(dataset_name_or_id)
        folder = join(nnUNet_preprocessed, name)
        plans_file = join(folder, f"{plans_identifier}.json")
        if not isdir(join(nnUNet_raw, name)):
            raise CorpusError(f"There is no {join(nnUNet_raw, name)}: without raw images nothing can be preprocessed.")
        if not isfile(plans_file):
            raise CorpusError(
                f"There are no plans {plans_file}. Run nnUNetv2_plan_experiment -d {int(name[7:10])} first."
            )
        plans_manager = PlansManager(load_json(plans_file))
        configuration = plans_manager.get_configuration(configuration_name)
        dataset_json = load_json(join(folder, "dataset.json"))
        # Of the raw data, not of their copy in nnUNet_preprocessed: images may have been added since the planning.
        cases = list_images(join(nnUNet_raw, name), read_dataset_json(join(nnUNet_raw, name)))
        # With tens of thousands of cases this entry would be megabytes, sent to the workers once per case.
        dataset_json.pop("dataset", None)

        output = join(folder, configuration.data_identifier)
        start_or_continue(output, relevant_settings(plans_manager.plans, configuration.configuration, dataset_json))
        finished = finished_cases(output)
        gone = finished - cases.keys()
        if gone:
            print(f"Removed {len(gone)} cases that are no longer in {name}:\n{shortened(sorted(gone))}")
            discard(output, gone)
        tasks = {
            case: (join(output, case), files["images"], files["label"], plans_manager, configuration, dataset_json)
            for case, files in cases.items()
            if case not in finished
        }
        if len(tasks) < len(cases):
            print(
                f"{len(cases) - len(tasks)} of {len(cases)} cases are finished already. To make them anew, remove {output}."
            )
        found = {}
        for case, reason in work_through(
            self.run_case_save, tasks, num_processes, "Preprocessing cases", self.show_progress_bar
        ):
            if reason is not None:
                found[case] = describe(cases[case], reason, f"preprocessing {configuration.data_identifier}")
        update_left_out(folder, tasks.keys(), found)
        if found:
            print(report(found, len(cases), folder))
        if not finished_cases(output):
            reasons = [f"{case}: {entry['reason']}" for case, entry in found.items()]
            raise CorpusError(f"None of the {len(cases)} images of {name} can be used:\n{shortened(reasons)}")
        limit_label_copy()

    def _reason_against(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
    ) -> str | None:
        flat = len(configuration_manager.patch_size) == 2
        num_channels = len(configuration_manager.normalization_schemes)
        reason = check_image(data, properties, num_channels=num_channels, flat_allowed=flat)
        if reason is None and seg is not None and seg.shape[1:] != data.shape[1:]:
            reason = f"image and label differ in shape: {list(data.shape[1:])} and {list(seg.shape[1:])}"
        if reason is not None or flat or configuration_manager.resampling_fn_data.func is no_resampling_hack:
            return reason
        axes, spacing = plans_manager.transpose_forward, configuration_manager.spacing
        shape = [data.shape[1:][i] for i in axes]
        return check_resampled_shape(
            compute_new_shape(shape, [properties["spacing"][i] for i in axes], spacing), spacing
        )
