"""What differs between the arms beside weights and learning rate, and what was left out: the small print of a comparison."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ssl.messages import counted
from nnunet_ssl.report.comparison.folder import FAILED, FINISHED, MISSING, RUNNING, Comparison, Key, prepared

MATCHED = frozenset(
    {"SSLScratchTrainer", "SSLFinetuneTrainer"}
)  # twins: schedule and all else the same but for the learning rate
FINETUNE = "finetune"
OF_THE_WEIGHTS = ("initial_lr", "transfer", "channels", "stem")  # settings that go with the weights
NAMES = ("data_identifier",)
SHOULD_AGREE = {
    "trainer": "the trainer",
    "plans": "the plans",
    "num_epochs": "the number of epochs",
    "training_cases": "the training cases",
    "test_cases": "the test cases",
    "versions": "versions of packages",
}


def differences_in_setup(comparison: Comparison) -> list[str]:
    """Sentences on finished cells of several arms, equal in data set, fold, seed and labelled cases, but not in their setup."""
    groups: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for cell in comparison.finished():
        key = cell.key
        groups[(key.dataset, key.labelled, key.fold, key.seed)][key.arm] = cell.noted
    found: dict[tuple[str, str, str], set[str]] = defaultdict(set)  # (arm, field, how) -> data sets
    plans = {dataset: _plans(comparison, dataset) for dataset in comparison.datasets}
    for (dataset, *_), arms in groups.items():
        first = arms.get(comparison.reference)
        if first is None:
            continue
        for arm, noted in arms.items():
            for field in SHOULD_AGREE:
                own = plans[dataset]
                if field == "plans" and arm in own and comparison.reference in own:
                    how = _in_plans(own[comparison.reference], own[arm])
                else:
                    how = _difference(field, first.get(field), noted.get(field))
                if how:
                    found[arm, field, how].add(dataset)
    return [
        f"{arm} and {comparison.reference} differ in {SHOULD_AGREE[field]}{how}, on {', '.join(sorted(datasets))}: the "
        "difference in their scores is not that of the weights alone."
        for (arm, field, how), datasets in found.items()
    ]


def _plans(comparison: Comparison, dataset: str) -> dict[str, Mapping[str, Any]]:
    """Arm -> the configuration that it trains with, where the comparison has noted the plans."""
    noted = prepared(comparison, dataset)
    plans = noted.get("plans") or {}
    configurations = {
        arm: (content.get("configurations") or {}).get(noted.get("configuration")) for arm, content in plans.items()
    }
    return {arm: configuration for arm, configuration in configurations.items() if isinstance(configuration, dict)}


def _in_plans(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """In which entries two configurations differ, beside what is meant to and the names of preprocessed data."""
    one, other = (
        {**c, FINETUNE: {k: v for k, v in c.get(FINETUNE, {}).items() if k not in OF_THE_WEIGHTS}}
        for c in (first, second)
    )
    names = sorted(key for key in one.keys() | other.keys() if key not in NAMES and one.get(key) != other.get(key))
    return f" ({', '.join(name.replace('_', ' ') for name in names)})" if names else ""


def _difference(field: str, first: Any, second: Any) -> str:
    """How two values differ, in words that follow the field's name; empty where they agree or one is not known."""
    if first is None or second is None or first == second:
        return ""
    if field == "trainer":
        return "" if {first, second} <= MATCHED else f" ({second} and {first})"
    if field == "versions":
        names = [name for name in first.keys() & second.keys() if first[name] != second[name]]
        return f" ({', '.join(sorted(names))})" if names else ""
    if isinstance(first, list) and isinstance(second, list):
        one, other = set(map(str, first)), set(map(str, second))
        return f" ({len(other - one)} of {len(other)} are others)" if one != other else ""
    return f" ({second} and {first})"


def warnings_of_cells(comparison: Comparison) -> list[str]:
    """What the trainings warned of, each once, with the number of cells."""
    count: Counter[str] = Counter()
    for cell in comparison.cells:
        count.update({str(text) for text in cell.noted.get("warnings") or []})
    return [text if times == 1 else f"{text} ({times} cells)" for text, times in count.items()]


def states(comparison: Comparison) -> dict[str, int]:
    """How many cells are in which state."""
    count = Counter(cell.state for cell in comparison.cells)
    return {
        "expected": len(comparison.cells),
        **{state: count[state] for state in (FINISHED, FAILED, RUNNING, MISSING)},
    }


def left_out(
    comparison: Comparison,
    differences: Mapping[str, Sequence[Mapping[str, Any]]],
    ranks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[str]:
    """What does not count, and why, in sentences."""
    lines = [
        f"{cell.key.words()}: failed. {cell.error or ''}".strip() for cell in comparison.cells if cell.state == FAILED
    ]
    lines += _in_numbers([cell.key for cell in comparison.cells if cell.state == RUNNING], "still running")
    lines += _in_numbers([cell.key for cell in comparison.cells if cell.state == MISSING], "not begun")
    lines += _in_numbers(comparison.others, "in the folder, but not asked for by the description")
    unpaired: dict[str, list[str]] = {}  # what is missing -> metrics
    for metric, rows in differences.items():
        for row in rows:
            for text in _unpaired(row, comparison.reference):
                unpaired.setdefault(text, []).append(metric)
    lines += [f"{text} ({', '.join(metrics)})." for text, metrics in unpaired.items()]
    for metric, rows in ranks.items():
        for row in rows:
            if row["left_out"]:
                names = ", ".join(row["left_out"])
                lines.append(
                    f"Ranks, {metric}, {labels(row['labelled'])}: {names}, where no case has a score of every arm."
                )
    return lines


def labels(number: str) -> str:
    """With how many labelled cases, in words."""
    return "all labelled cases" if number == "all" else f"{number} labelled case{'s' * (number != '1')}"


def _in_numbers(keys: Sequence[Key], what: str) -> list[str]:
    """One line per arm, for many cells may not have begun."""
    by_arm: dict[str, list[Key]] = defaultdict(list)
    for key in keys:
        by_arm[key.arm].append(key)
    lines = []
    for arm, own in by_arm.items():
        example = f", e.g. {own[0].words()}" if len(own) > 1 else f": {own[0].words()}"
        lines.append(f"{arm}: {counted(len(own), 'cell')} {what}{example}.")
    return lines


def _unpaired(row: Mapping[str, Any], reference: str) -> list[str]:
    counts = row["left_out"]
    reasons = {
        "only_reference": f"of cases that only {reference} has",
        "only_arm": f"of cases that only {row['arm']} has",
        "undefined": "undefined in one of them",
    }
    given = ", ".join(f"{counted(counts[key], 'score')} {text}" for key, text in reasons.items() if counts[key])
    where = f"{row['dataset']}, {labels(row['labelled'])}, {row['arm']} against {reference}"
    return [f"{where}, not paired: {given}"] if given else []
