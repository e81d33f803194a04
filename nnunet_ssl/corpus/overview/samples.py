"""Read some images of a data set: a mid-slice and the range of intensities of each, or why it is unusable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.check import check_image
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.corpus.parallel import work_through
from nnunet_ssl.corpus.reading import choose_reader, describe_failure, read_case
from nnunet_ssl.corpus.sampling import sampling_weights
from nnunet_ssl.errors import UnusableImage

THUMBNAIL = 96  # voxels of the longer edge, in millimetres if the voxels are not square
SEED = 1234


@dataclass(frozen=True)
class Sample:
    """What a look into one image showed: thumbnail [H, W] of grey values from 0 to 255, intensities, or a problem."""

    case: str
    thumbnail: np.ndarray | None = None
    lowest: float = float("nan")
    percentile_1: float = float("nan")
    percentile_99: float = float("nan")
    highest: float = float("nan")
    problem: str | None = None


def read_samples(folder: str, table: pd.DataFrame, number: int, num_processes: int) -> list[Sample]:
    """A look into `number` cases of a raw data set, as many of every modality as possible, in the table's order."""
    usable = table[table["problem"].isna()]
    chosen = usable
    if len(usable) > number:
        weights = sampling_weights(usable, "modalities").to_numpy()
        rows = np.random.default_rng(SEED).choice(len(usable), number, replace=False, p=weights)
        chosen = usable.iloc[np.sort(rows)]
    if not len(chosen):
        return []
    dataset_json = read_dataset_json(folder)
    cases = list_images(folder, dataset_json)
    wanted = {case: cases[case]["images"] for case in chosen["case"] if case in cases}
    reader = choose_reader(dataset_json, {case: cases[case] for case in wanted})
    tasks = {case: (case, images, reader) for case, images in wanted.items()}
    done = dict(work_through(look, tasks, num_processes, "Looking at images"))
    return [done[case] for case in wanted]


def look(case: str, images: Sequence[str], reader: type) -> Sample:
    """What the first channel of one case shows."""
    try:
        data, properties = read_case(reader, images)
        reason = check_image(data, properties, num_channels=len(images), flat_allowed=True)
        if reason:
            return Sample(case, problem=reason)
        lowest, low, high, highest = np.percentile(data[0], (0, 1, 99, 100))
        picture = thumbnail(data[0], properties["spacing"], float(low), float(high))
        return Sample(case, picture, float(lowest), float(low), float(high), float(highest))
    except UnusableImage as error:
        return Sample(case, problem=str(error))
    except MemoryError:
        raise
    except Exception as error:
        return Sample(case, problem=describe_failure(error))


def thumbnail(image: np.ndarray, spacing: Sequence[float], low: float, high: float) -> np.ndarray:
    """The mid-slice [H, W] across the axis with the largest spacing, the first of equal ones; black is `low`, white `high`."""
    axis = int(np.argmax(np.round(spacing, 3)))
    plane = np.take(image, image.shape[axis] // 2, axis=axis)
    size = [n * s for a, (n, s) in enumerate(zip(image.shape, spacing, strict=True)) if a != axis]
    steps = [max(1, round(THUMBNAIL * edge / max(size))) for edge in size]
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * length / n).astype(int), length - 1)
        for n, length in zip(steps, plane.shape, strict=True)
    )
    # Files lie in memory with the feet first: turned over, the head is up in coronal and sagittal slices.
    plane = plane[rows][:, columns] if axis == 0 else plane[rows][::-1, columns]
    scaled = (plane - low) / (high - low if high > low else 1.0)
    return np.clip(scaled * 255, 0, 255).astype(np.uint8)
