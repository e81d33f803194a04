"""Dataset fingerprint of images with, without or with some labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import makedirs
from os.path import isfile, join
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_ssl.corpus.check import check_cropped_shape, check_image
from nnunet_ssl.corpus.images import list_images, read_dataset_json, shortened
from nnunet_ssl.corpus.left_out import left_out_row, report, update_left_out
from nnunet_ssl.corpus.reading import choose_reader, or_reason, read_case, read_label
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.folders import require_writable
from nnunet_ssl.messages import say_errors_in_one_line
from nnunet_ssl.planners.preprocessing.cropping import crop_to_nonzero
from nnunet_ssl.planners.sharing.workers import Died, Task, work_off
from nnunet_ssl.progress_bars import progress_bar

MAX_BRIGHT_SAMPLES = 100_000  # per case and channel; plenty for percentiles where no label says what matters
PERCENTILES = (0.5, 50.0, 99.5)


class SSLFingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's fingerprint, for image-only datasets too; unusable images are reported and left out.

    Wherever labels exist the numbers are nnU-Net's own. Without any label, "foreground" is what is brighter than the
    image's mean: in scans most voxels are dark air, and intensity statistics (CT's clipping range above all) would
    otherwise left_out_row the air around the patient. The mean lies between the two in CT as well as in MR.
    """

    def __init__(self, dataset_name_or_id: str | int, num_processes: int = 8, verbose: bool = False) -> None:
        self.verbose = verbose
        self.show_progress_bar = True
        self.dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        self.input_folder = join(nnUNet_raw, self.dataset_name)
        self.num_processes = num_processes
        self.dataset_json = read_dataset_json(self.input_folder)
        self.dataset = list_images(self.input_folder, self.dataset_json)
        self.num_foreground_voxels_for_intensitystats = 10e7  # nnU-Net's number, over all cases

    def run(self, overwrite_existing: bool = False) -> dict[str, Any]:
        """Extract and save the fingerprint, or return the one that exists; raises CorpusError when no image is usable."""
        folder = join(nnUNet_preprocessed, self.dataset_name)
        path = join(folder, "dataset_fingerprint.json")
        if isfile(path) and not overwrite_existing:
            return read_json(path)
        say_errors_in_one_line()  # of nnU-Net's commands as well
        require_writable(folder)
        makedirs(folder, exist_ok=True)
        results = self._analyse_all()
        reasons = {case: result for case, result in results.items() if isinstance(result, str)}
        usable = [result for result in results.values() if not isinstance(result, str)]
        found = {case: left_out_row(self.dataset[case], reasons[case], "fingerprint") for case in reasons}
        update_left_out(folder, self.dataset, found)
        if not usable:
            raise CorpusError(
                f"None of the {len(self.dataset)} images of {self.dataset_name} can be used:\n"
                + shortened([f"{case}: {reason}" for case, reason in reasons.items()])
            )
        if found:
            print(report(found, len(self.dataset), folder))
        fingerprint = summarise(usable, len(self.dataset_json["channel_names"]))
        write_json(fingerprint, path)
        return fingerprint

    def _analyse_all(self) -> dict[str, dict[str, Any] | str]:
        """The analysis of every case in the dataset's order; the reason as text for the unusable ones."""
        reader = choose_reader(self.dataset_json, self.dataset)
        num_samples = int(self.num_foreground_voxels_for_intensitystats // len(self.dataset))
        num_channels = len(self.dataset_json["channel_names"])
        hidden = self.dataset_json["labels"].get("anonymised")
        hidden = hidden if isinstance(hidden, int) else None
        shared = (reader, num_samples, num_channels, hidden)
        tasks = (Task(name, (case["images"], case["label"])) for name, case in self.dataset.items())
        outcomes = progress_bar(
            work_off(analyse, tasks, self.num_processes, shared),
            desc="Extracting dataset fingerprint",
            total=len(self.dataset),
            disable=not self.show_progress_bar,
        )
        done = {name: result.reason if isinstance(result, Died) else result for name, result in outcomes}
        results = {name: done[name] for name in self.dataset}
        volumes = [r for r in results.values() if not isinstance(r, str) and r["shape"][0] > 1]
        if volumes:
            for name, result in results.items():
                if not isinstance(result, str) and result["shape"][0] == 1:
                    results[name] = "a single slice, while the other images are volumes"
        return results


def analyse(
    images: Sequence[str],
    label: str | None,
    reader: type,
    num_samples: int,
    num_channels: int,
    anonymised: int | None,
) -> dict[str, Any] | str:
    """Shape after cropping, spacing [mm], relative size and sampled intensities of one case, or why it is unusable."""

    def measure() -> dict[str, Any] | str:
        data, properties = read_case(reader, images)
        reason = check_image(data, properties, num_channels=num_channels, flat_allowed=True)
        if reason:
            return reason
        segmentation, _ = read_label(reader, label, data.shape)
        result = _measure(data, segmentation, properties, num_samples, anonymised)
        return check_cropped_shape(result["shape"]) or result

    return or_reason(measure)


def _measure(
    data: np.ndarray,
    segmentation: np.ndarray | None,
    properties: Mapping[str, Any],
    num_samples: int,
    anonymised: int | None,
) -> dict[str, Any]:
    cropped, labels, _ = crop_to_nonzero(data, segmentation)
    labelled = bright = None
    if segmentation is not None:
        foreground = labels if anonymised is None else np.where(labels == anonymised, 0, labels)
        if (foreground > 0).any():
            collect = DatasetFingerprintExtractor.collect_foreground_intensities
            labelled = collect(foreground, cropped, num_samples=num_samples)[0]
    if labelled is None:
        bright = _bright_intensities(cropped, min(num_samples, MAX_BRIGHT_SAMPLES))
    return {
        "shape": [int(s) for s in cropped.shape[1:]],
        "spacing": [float(s) for s in properties["spacing"]],
        "relative_size": float(np.prod(cropped.shape[1:]) / np.prod(data.shape[1:])),
        "labelled": labelled,
        "bright": bright,
    }


def _bright_intensities(data: np.ndarray, num_samples: int, seed: int = 1234) -> list[np.ndarray]:
    """Samples per channel of the voxels brighter than that channel's mean; of all voxels where it is constant."""
    generator = np.random.RandomState(seed)
    samples = []
    for channel in data:
        brighter = channel[channel > channel.mean(dtype=np.float64)]
        samples.append(generator.choice(brighter if brighter.size else channel.ravel(), num_samples))
    return samples


def summarise(results: Sequence[Mapping[str, Any]], num_channels: int) -> dict[str, Any]:
    """The fingerprint in nnU-Net's format; intensities of labelled foreground wherever any case has some."""
    source = "labelled" if any(r["labelled"] is not None for r in results) else "bright"
    # Cases without foreground count as empty lists, as in nnU-Net: they turn the sums into double precision.
    collected = [r[source] if r[source] is not None else [[]] * num_channels for r in results]
    return {
        "spacings": [r["spacing"] for r in results],
        "shapes_after_crop": [r["shape"] for r in results],
        "foreground_intensity_properties_per_channel": {
            str(c): _statistics(np.concatenate([case[c] for case in collected])) for c in range(num_channels)
        },
        "median_relative_size_after_cropping": float(np.median([r["relative_size"] for r in results])),
    }


def _statistics(intensities: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(intensities, np.array(PERCENTILES))
    return {
        "mean": float(np.mean(intensities)),
        "median": float(median),
        "std": float(np.std(intensities)),
        "min": float(np.min(intensities)),
        "max": float(np.max(intensities)),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }
