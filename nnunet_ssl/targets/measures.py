"""How well a target is told: scikit-learn's measures, with bootstrap intervals over people."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr
from sklearn import metrics

from nnunet_ssl.targets.table import BINARY, REGRESSION, Target

RESAMPLES, CONFIDENCE = 500, 0.95
CALIBRATION_BINS = 10
MAIN = {BINARY: "AUROC", "multiclass": "AUROC", REGRESSION: "R2"}
Measure = Callable[[np.ndarray, np.ndarray], float]


def calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal bins of confidence (Guo et al., 2017).

    truth: classes [N]. probabilities [N, classes].
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[number == n].mean() - right[number == n].mean()) * (number == n).mean() for n in set(number)]
    return float(sum(gaps))


def measures_of(target: Target) -> dict[str, Measure]:
    """Names and functions (truth [N], predicted) of what a kind of target is judged by.

    Predicted are values [N] of a regression, else probabilities [N, classes], both columns of a binary target. Several classes:
    one class against the rest, mean over the classes.
    """
    if target.kind == REGRESSION:
        return {
            "MAE": lambda t, p: float(metrics.mean_absolute_error(t, p)),
            "RMSE": lambda t, p: float(metrics.root_mean_squared_error(t, p)),
            "R2": lambda t, p: float(metrics.r2_score(t, p)),
            "Spearman": lambda t, p: float(spearmanr(t, p).statistic),
        }
    labels = np.arange(len(target.classes))

    def one_hot(truth: np.ndarray) -> np.ndarray:
        return (truth[:, None] == labels).astype(int)

    def of_class_1(function: Callable[..., float]) -> Measure:
        if target.kind == BINARY:
            return lambda t, p: float(function(t == 1, p[:, 1]))
        return lambda t, p: float(np.mean([function(t == n, p[:, n]) for n in labels]))

    def of_decision(function: Callable[..., float], **how: object) -> Measure:
        return lambda t, p: float(function(t, p.argmax(axis=1), **how))

    average = {"average": "binary"} if target.kind == BINARY else {"average": "macro", "labels": labels}
    return {
        "AUROC": of_class_1(metrics.roc_auc_score),
        "average precision": of_class_1(metrics.average_precision_score),
        "balanced accuracy": of_decision(metrics.balanced_accuracy_score),
        "F1": of_decision(metrics.f1_score, zero_division=0.0, **average),
        "MCC": of_decision(metrics.matthews_corrcoef),
        "Brier": lambda t, p: float(((p - one_hot(t)) ** 2).sum(axis=1).mean() / (2 if target.kind == BINARY else 1)),
        "calibration error": calibration_error,
    }


def measure(
    target: Target,
    truth: Sequence[float] | np.ndarray,
    predicted: np.ndarray,
    people: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """{measure: {"value", "low", "high"}}: the interval holds 95 % of bootstrap samples of people, with all images of each.

    Samples in which a measure has no value (one class alone) are left out; NaN where it has none at all, or of fewer than two
    people.
    """
    truth = np.asarray(truth, float)
    truth = truth if target.kind == REGRESSION else truth.astype(int)
    names, positions = np.unique(np.asarray(people, str), return_inverse=True)
    members = [np.flatnonzero(positions == n) for n in range(len(names))]
    generator = np.random.default_rng(seed)
    draws = [generator.integers(len(names), size=len(names)) for _ in range(resamples if len(names) > 1 else 0)]
    samples = [np.concatenate([members[n] for n in draw]) for draw in draws]
    found = {}
    for name, function in measures_of(target).items():
        again = [_quietly(function, truth[s], predicted[s]) for s in samples]
        again = [value for value in again if np.isfinite(value)]
        low, high = np.quantile(again, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if again else (np.nan, np.nan)
        found[name] = {"value": _quietly(function, truth, predicted), "low": float(low), "high": float(high)}
    return found


def _quietly(function: Measure, truth: np.ndarray, predicted: np.ndarray) -> float:
    """NaN where a measure is not defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(truth, predicted)
        except ValueError:
            return float("nan")


def sentence(target: Target, found: Mapping[str, Mapping[str, float]], how: str) -> str:
    """The main measure in words."""
    main = MAIN[target.kind]
    values, unit = found[main], "no better than guessing is 0.5" if main == "AUROC" else "no better than the mean is 0"
    return f"{target.name}: {main} {values['value']:.3f} ({values['low']:.3f} to {values['high']:.3f}), {how}; {unit}"
