"""How much a linear model finds in frozen features: cross-validated, by person, the same numbers every time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunet_ssl.planners.folds import FOLDS
from nnunet_ssl.targets.folds import target_folds
from nnunet_ssl.targets.measures import RESAMPLES, measure, sentence
from nnunet_ssl.targets.table import REGRESSION, Target

STRENGTHS = np.logspace(-3, 5, 9)  # of ridge's penalty; the inverse for logistic regression
INNER_FOLDS = 3  # of the training cases, to choose the strength


@dataclass(frozen=True)
class Probed:
    """Held-out predictions of every case, and what they are worth."""

    target: Target
    cases: tuple[str, ...]
    predicted: np.ndarray
    measures: Mapping[str, Mapping[str, float]]
    folds: int

    def __str__(self) -> str:
        how = f"a linear model on frozen features, {self.folds} folds by person, {len(self.cases)} images"
        return sentence(self.target, self.measures, how)


def probe(
    features: Mapping[str, np.ndarray],
    target: Target,
    subjects: Mapping[str, str | None],
    folds: int = FOLDS,
    resamples: int = RESAMPLES,
) -> Probed:
    """Ridge regression or logistic regression on z-scored features {case: [C]}, judged on cases of people it has not seen.

    The strength of the penalty is chosen on the training cases of each fold, by person too. Raises CorpusError where there are
    too few people.
    """
    known = Target(target.name, target.kind, target.classes, {c: v for c, v in target.values.items() if c in features})
    splits = target_folds(known, subjects, folds)
    predicted: dict[str, np.ndarray] = {}
    for split in splits:
        model = _fitted(known, split["train"], features, subjects)
        rows = np.stack([features[case] for case in split["val"]]).astype(np.float64)
        found = model.predict(rows) if known.kind == REGRESSION else _all_classes(model, rows, len(known.classes))
        predicted.update(zip(split["val"], found, strict=True))
    cases = tuple(sorted(predicted))
    values = np.stack([predicted[case] for case in cases])
    people = [subjects.get(case) or case for case in cases]
    return Probed(
        known, cases, values, measure(known, [known.values[c] for c in cases], values, people, resamples), folds
    )


def _fitted(
    target: Target, cases: list[str], features: Mapping[str, np.ndarray], subjects: Mapping[str, str | None]
) -> Any:
    rows = np.stack([features[case] for case in cases]).astype(np.float64)
    people = [subjects.get(case) or case for case in cases]
    values = np.array([target.values[case] for case in cases])
    inner = list(GroupKFold(min(INNER_FOLDS, len(set(people)))).split(rows, values, people))
    if target.kind == REGRESSION:
        return make_pipeline(StandardScaler(), RidgeCV(STRENGTHS, cv=inner)).fit(rows, values)
    inner = [(train, val) for train, val in inner if len(set(values[train])) == len(set(values))]
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    chosen = GridSearchCV(logistic, {"logisticregression__C": 1 / STRENGTHS}, cv=inner or None, scoring="neg_log_loss")
    return chosen.fit(rows, values.astype(int))


def _all_classes(model: Any, rows: np.ndarray, number: int) -> np.ndarray:
    """Probabilities [N, classes], also of classes that a fold has not seen."""
    found = np.zeros((len(rows), number))
    found[:, model.classes_] = model.predict_proba(rows)
    return found
