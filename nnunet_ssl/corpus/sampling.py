"""How often each image is drawn: every image alike, or every subject, modality or data set alike."""

from __future__ import annotations

import pandas as pd

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.settings.blocks import SAMPLING


def sampling_weights(table: pd.DataFrame, by: str = "images") -> pd.Series:
    """The probability of each case (index: case, sum 1) when groups are drawn uniformly, then an image of the group.

    "subjects" are people of one data set. Images without a modality, or without a data set, are one group; images without a
    subject are each their own. Raises CorpusError for an unknown `by` or an empty table.
    """
    if by not in SAMPLING:
        raise CorpusError(f"Sampling by {by!r} is unknown. There are: {', '.join(SAMPLING)}.")
    if not len(table):
        raise CorpusError("There is no image to sample from.")
    if by == "images":
        return pd.Series(1.0 / len(table), index=table["case"].astype(str), name="weight")
    if by == "subjects":
        own = table["subject"].astype(object).where(table["subject"].notna(), table["case"])
        groups = table["dataset"].astype(object).fillna("").astype(str) + "\0" + own.astype(str)
    else:
        column = "modality" if by == "modalities" else "dataset"
        groups = table[column].astype(object).fillna("").astype(str)
    sizes = groups.map(groups.value_counts()).to_numpy(dtype=float)
    weights = 1.0 / (groups.nunique() * sizes)
    return pd.Series(weights, index=table["case"].astype(str), name="weight")
