"""Bring the table of measured GPU times into docs/benchmark.md and docs/choosing.md, and the counted memory of all pairs.

python docs/make_gpu_times.py            # the times, from nnunet_ssl/report/gpu_times.csv; --check: exit with 1 when out of date
python docs/make_gpu_times.py --count    # the memory as well, which takes minutes
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunet_ssl.cli.pretrain_flags import BACKBONES
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.report.gpu_times import GpuTime, gpu_times
from nnunet_ssl.report.memory_fit import CARDS, GIB

CHECKOUT = Path(__file__).resolve().parents[1]
LARGE = {"resenc_l": "unet", "primus_m": "primus"}
TIMES, SHORT, MEMORY = "GPU times", "GPU times in short", "counted memory"


def pairs() -> list[tuple[str, str]]:
    """Methods of this package with the large networks they work on, in the order of docs/methods/README.md."""
    own = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
    return [
        (m, b) for m in sorted(own, key=lambda m: m != "mae") for b, k in LARGE.items() if k in get_method(m).backbones
    ]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def time_row(time: GpuTime) -> list[str]:
    """Card, batch, how, milliseconds, GiB, hours."""
    memory = f"{time.allocated_gib:.1f} / {time.reserved_gib:.1f}"
    return [time.card, str(time.batch), time.how, f"{time.ms:.1f}", memory, f"{time.hours():.1f}"]


def times_table(everything: bool) -> str:
    """What was measured for every pair; without `everything`, for those with a measurement only."""
    rows = []
    for method, backbone in pairs():
        found = [t for t in gpu_times() if (t.method, t.backbone) == (method, backbone)]
        rows += [[f"`{method}`", f"`{backbone}`", *time_row(time)] for time in found]
        if everything and not found:
            rows.append([f"`{method}`", f"`{backbone}`", "not measured", "", "", "", "", ""])
    header = (
        "method",
        "network",
        "GPU",
        "batch",
        "how",
        "ms per step",
        "GiB, tensors / reserved",
        "GPU hours of a run",
    )
    return markdown(header, rows)


def memory_row(method: str, backbone: str) -> list[str]:
    """Counted GiB of 2 and 8 images, and the largest batches, without and with --recompute."""
    from nnunet_ssl.planners.ssl_planner import CONFIGURATION
    from nnunet_ssl.planners.to_estimate import plans_without_data
    from nnunet_ssl.trainers.profiling.counting import CountedStep
    from nnunet_ssl.trainers.profiling.fitting import Curve

    row = [f"`{method}`", f"`{backbone}`"]
    for recompute in (False, True):
        step = CountedStep(plans_without_data(BACKBONES[backbone]), CONFIGURATION, method, recompute)
        curve = Curve(step, processes=1, shard=False)
        held = [curve.count(images) / GIB for images in (2, 8)]
        curve.reach(max(CARDS.values()) * GIB)
        largest = [curve.largest(card) for card in CARDS]
        row += [" / ".join(f"{h:.1f}" for h in held), " / ".join("-" if n is None else str(n) for n in largest)]
    return row


def memory_table() -> str:
    """Counted memory of all pairs."""
    largest = f"largest batch, {' / '.join(CARDS)}"
    header = ("method", "network", "GiB, batch 2 / 8", largest, "--recompute: GiB", "--recompute: largest batch")
    return markdown(header, (memory_row(*pair) for pair in pairs()))


def with_table(text: str, name: str, table: str) -> str:
    """The text with the table between the two marks of this name."""
    first, last = (f"<!-- {name}: {what} -->" for what in ("python docs/make_gpu_times.py", "end"))
    before, rest = text.split(first)
    return f"{before}{first}\n\n{table}\n\n{last}{rest.split(last)[1]}"


if __name__ == "__main__":
    tables = {"docs/benchmark.md": [(TIMES, times_table(True))], "docs/choosing.md": [(SHORT, times_table(False))]}
    if "--count" in sys.argv:
        tables["docs/benchmark.md"].append((MEMORY, memory_table()))
    for name, found in tables.items():
        page = CHECKOUT / name
        text = new = page.read_text()
        for mark, table in found:
            new = with_table(new, mark, table)
        if "--check" in sys.argv and new != text:
            sys.exit(f"{name} is out of date: make docs")
        if new != text:
            page.write_text(new)
