"""Computed tomography, recognised by its values: air at -1000, water at 0, in Hounsfield units."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.reader import CorpusReader

NUM_TRIED = 16  # images, evenly spaced over those whose modality nobody says
AIR, TISSUE = (-1100, -850), (-200, 300)  # HU
MIN_SHARE = 0.01  # of voxels that are air, and of those that are tissue
LOWEST = -4096  # HU; scanners write -1024 to -3024 outside of their field of view


def name_cts(table: pd.DataFrame, num_threads: int) -> tuple[pd.DataFrame, list[str]]:
    """The table with modality CT where none is said and all that are tried hold Hounsfield units; what to say about it."""
    unknown = np.flatnonzero((table["modality"].isna() & table["problem"].isna() & table["images"].isna()).to_numpy())
    if not len(unknown):
        return table, []
    tried = unknown[np.unique(np.linspace(0, len(unknown) - 1, NUM_TRIED).astype(int))]
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        found = list(pool.map(holds_hounsfield_units, table["path"].iloc[tried].astype(str)))
    if not any(found):
        return table, []
    if not all(found):
        return table, [
            f"{sum(found)} of {len(found)} images that were looked at hold Hounsfield units and are CTs, the others are not. Say "
            "which is which, in a table with the column modality, or import them apart: nnU-Net normalises all alike."
        ]
    table = table.assign(modality=table["modality"].astype(object))
    table.iloc[unknown, table.columns.get_loc("modality")] = "CT"
    return table, [
        f"The values of {len(found)} images that were looked at are Hounsfield units: {len(unknown)} images are taken as CTs. "
        "If that is wrong, say what they are: --channel-name MR"
    ]


def holds_hounsfield_units(path: str) -> bool:
    """Whether an image has air and tissue where CTs have them; False where it cannot be read."""
    try:
        values = CorpusReader().read_images([path])[0]
    except Exception:  # what is wrong with it is the reader's to say
        return False
    if values.min() < LOWEST or values.min() > AIR[1]:
        return False
    shares = [float(((values >= low) & (values <= high)).mean()) for low, high in (AIR, TISSUE)]
    return min(shares) >= MIN_SHARE
