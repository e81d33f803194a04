"""Which images are label maps, by what is in them: few small whole numbers in large pieces, and no noise."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pandas as pd

from nnunet_ssl.corpus.reader import CorpusReader
from nnunet_ssl.corpus.table import SHAPE, numbers

MAX_VALUES = 256  # TotalSegmentator has 117 classes, FreeSurfer's brains about 110
MAX_VALUE = 20_000  # FreeSurfer numbers its regions up to 14175
MIN_EQUAL = 0.5  # share of equal neighbours among voxels that are not 0; in 8-bit images with noise it is below 0.3
BYTES_PER_VOXEL = 0.15  # packed; label maps need about a hundredth, images more than a half
SLICES = 9  # looked at, evenly spaced


def find_label_maps(table: pd.DataFrame, num_threads: int) -> list[int]:
    """Positions of the rows whose images look like label maps; reads voxels of those alone whose files could be such."""
    rows = [row for row, worth in enumerate(_worth_a_look(table)) if worth]
    paths = table["path"].iloc[rows].tolist()
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        found = list(pool.map(is_label_map, paths))
    return [row for row, yes in zip(rows, found, strict=True) if yes]


def is_label_map(path: str) -> bool:
    """Whether the voxels of an image look like those of a label map; False where it cannot be read."""
    try:
        return _few_and_large(_slices(path))
    except Exception:  # what is wrong with it is the reader's to say
        return False


def _worth_a_look(table: pd.DataFrame) -> Sequence[bool]:
    voxels, size = numbers(table, SHAPE).prod(axis=1), numbers(table, ["bytes"])[:, 0]
    worth = []
    columns = (table["path"], table["dtype"], table["channels"], table["volumes"], table["problem"])
    for path, dtype, channels, volumes, problem, n, b in zip(*columns, voxels, size, strict=True):
        lower = str(path).lower()
        alone = pd.isna(problem) and channels == 1 and not pd.isna(volumes) and volumes == 1
        small = lower.endswith(".gz") and b < BYTES_PER_VOXEL * n
        whole = not pd.isna(dtype) and str(dtype).startswith(("int", "uint")) and lower.endswith(".nii")
        worth.append(bool(alone and (small or whole or str(dtype) in ("int8", "uint8"))))
    return worth


def _slices(path: str) -> np.ndarray:
    """A few slices [S, H, W]; of an unpacked NIfTI file no others are read."""
    if path.lower().endswith(".nii"):
        image = nibabel.load(path)
        chosen = np.unique(np.linspace(0, image.shape[2] - 1, SLICES).astype(int))
        return np.stack([np.asarray(image.dataobj[:, :, int(z)]) for z in chosen])
    volume = CorpusReader().read_images([path])[0][0]
    return volume[np.unique(np.linspace(0, len(volume) - 1, SLICES).astype(int))]


def _few_and_large(slices: np.ndarray) -> bool:
    values = np.unique(slices)
    if len(values) < 2 or len(values) > MAX_VALUES or values[0] < 0 or values[-1] > MAX_VALUE:
        return False
    if (values != np.round(values)).any():
        return False
    one, other = slices[..., :-1], slices[..., 1:]
    inside = (one != 0) | (other != 0)
    return bool((one == other)[inside].mean() >= MIN_EQUAL)
