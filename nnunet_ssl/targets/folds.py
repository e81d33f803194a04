"""Folds for targets: every class in every fold, all images of a person on one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.folds import FOLDS, SEED
from nnunet_ssl.targets.table import REGRESSION, Target

SHOWN = 5
BINS = 5  # of a measurement, by quantiles


def strata(target: Target) -> dict[str, int]:
    """{case: class, or fifth of the measurements it lies in}."""
    values = np.array(list(target.values.values()))
    if target.kind == REGRESSION:
        edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
        values = np.searchsorted(edges, values, side="right")
    return {case: int(value) for case, value in zip(target.values, values, strict=True)}


def target_folds(
    target: Target, subjects: Mapping[str, str | None], number: int = FOLDS, seed: int = SEED
) -> list[dict[str, list[str]]]:
    """Folds as nnU-Net stores them, of the cases that have a value; drawn by scikit-learn's StratifiedGroupKFold.

    subjects: {case: person}; a case without one is a person of its own. Raises CorpusError where a class has fewer people than
    there are folds: some fold would have nothing of it to learn from, or to be judged by.
    """
    cases = sorted(target.values)
    people = [subjects.get(case) or case for case in cases]
    of_case = strata(target)
    per_class = Counter(stratum for stratum, _ in {(of_case[c], p) for c, p in zip(cases, people, strict=True)})
    if target.kind != REGRESSION:
        few = {target.classes[n]: per_class[n] for n in range(len(target.classes)) if per_class[n] < number}
        if few:
            shown = ", ".join(f"{name}: {n}" for name, n in list(few.items())[:SHOWN])
            shown += f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
            raise CorpusError(
                f"{target.name}: some classes have fewer people than there are folds ({number}): {shown}. Join classes in the "
                f"table, leave them empty, or take fewer folds ({min(few.values())})."
            )
    elif len(set(people)) < number:
        raise CorpusError(f"{target.name}: {len(set(people))} people are too few for {number} folds.")
    drawn = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    splits = drawn.split(cases, [of_case[case] for case in cases], people)
    return [{"train": [cases[i] for i in train], "val": [cases[i] for i in val]} for train, val in splits]
