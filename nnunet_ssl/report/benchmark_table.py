"""A benchmark as tables for a terminal, and as a picture."""

from __future__ import annotations

import os

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.corpus.overview.sections import Section, as_text
from nnunet_ssl.files.atomic import atomic_write
from nnunet_ssl.report.benchmark import PARTS, Benchmark, Estimate, Flops, Memory
from nnunet_ssl.report.progress import COLOURS

MEANING = {
    "data": "waiting for the loader; its copy to a GPU",
    "transfer": "what is not on the device yet",
    "prepare": "rotation and mirroring on a GPU; crops, masks, corruptions",
    "forward": "network and loss",
    "backward": "gradients",
    "optimiser": "clipping and update",
    "rest": "everything else",
}
GIB = 2**30


def benchmark_table(result: Benchmark) -> str:
    """Everything a person wants to know, as text."""
    setting, speed = result.setting, result.speed
    batch = f"{setting.batch_size}{f' in {setting.accumulate} micro-batches' if setting.accumulate > 1 else ''}"
    head = (
        f"{setting.method}, {setting.network} ({setting.parameters / 1e6:.1f} M parameters), {setting.data}, patch "
        f"{shape_text(setting.patch_size)}, batch {batch}\n{setting.device}, {setting.precision}"
        f"{', compiled' if setting.compiled else ''}{', recomputing' if setting.recompute else ''}, "
        f"{setting.threads} threads, {setting.workers} workers, "
        f"torch {setting.versions['torch']}"
    )
    sections = [
        Section(
            "End to end",
            ("", "figure"),
            [
                ("samples/s", f"{speed.samples_per_second:.3g}"),
                ("s/iteration, mean", f"{speed.mean:.3g}"),
                ("s/iteration, median (10 to 90 %)", f"{speed.median:.3g} ({speed.p10:.3g} to {speed.p90:.3g})"),
            ],
            f"{speed.iterations} iterations after {speed.warmup} that do not count.",
        ),
        _parts(result),
        Section("Memory at its peak", ("", "GiB"), _memory(result.memory)),
        _flops(result.flops),
        run_section(result.estimate),
    ]
    notes = "".join(f"\n\nNote: {note}" for note in result.notes)
    return f"{head}\n\n{as_text(sections)}{notes}"


def _parts(result: Benchmark) -> Section:
    parts = result.breakdown
    rows = [(part, f"{parts.shares[part]:.1%}", f"{parts.seconds[part]:.3g}", MEANING[part]) for part in PARTS]
    return Section(
        "Parts of a step",
        ("", "share", "median s", "what"),
        rows,
        f"{parts.iterations} further iterations of {parts.mean:.3g} s; the device is waited for at the borders of the parts.",
    )


def _memory(memory: Memory) -> list[tuple[str, str]]:
    rows = (
        ("tensors on the device", memory.device),
        ("reserved for them", memory.reserved),
        ("this process", memory.process),
        ("workers, all of them", memory.workers),
    )
    return [(name, f"{amount / GIB:.2f}") for name, amount in rows if amount is not None]


def _flops(flops: Flops) -> Section:
    rows: list[tuple[str, str, str]] = []
    if flops.achieved is not None:
        rows = [("achieved, end to end", f"{flops.achieved / 1e12:.3g}", "")]
    for name, ceiling, share in (
        ("matrix product, at best", flops.matmul_peak_flops, flops.share_of_matmul),
        ("convolution, at best", flops.conv_peak_flops, flops.share_of_conv),
    ):
        rows.append((name, f"{ceiling / 1e12:.3g}", "" if share is None else f"{share:.0%}"))
    step = "" if flops.per_iteration is None else f"A step takes {flops.per_iteration / 1e12:.3g} TFLOP. "
    return Section("Arithmetic", ("", "TFLOP/s", "achieved share"), rows, f"{step}Same device, same precision.")


def run_section(estimate: Estimate) -> Section:
    """The estimate for the whole run."""
    parts = ("training", "validation", "checkpoint")
    rows = [
        ("hours, all in all", f"{estimate.hours:.3g}"),
        *(
            (f"  {part}{'s, at most' * (part == 'checkpoint')}", f"{getattr(estimate, f'{part}_hours'):.3g}")
            for part in parts
        ),
        ("epochs x iterations (validation)", _length(estimate)),
        ("samples seen", f"{estimate.samples:,}"),
        ("a checkpoint", f"{estimate.checkpoint_bytes / GIB:.3g} GiB, {estimate.checkpoint_seconds:.3g} s"),
        ("checkpoints written, at most", f"{estimate.checkpoints:,}"),
        ("disk needed", f"{estimate.disk_bytes / GIB:.3g} GiB"),
    ]
    return Section("The whole run, as it would be here", ("", "estimate"), rows)


def _length(estimate: Estimate) -> str:
    return f"{estimate.epochs:,} x {estimate.iterations_per_epoch:,} ({estimate.val_iterations_per_epoch:,})"


def draw_benchmark(result: Benchmark, path: str | os.PathLike[str]) -> None:
    """Draw the parts of a step, and the arithmetic beside its ceilings, as bars of a PNG."""
    setting, shares = result.setting, result.breakdown.shares
    figure = Figure(figsize=(8, 4.6), dpi=110, facecolor="white", layout="constrained")
    figure.suptitle(
        f"{setting.method}, {setting.network}, {shape_text(setting.patch_size)}, batch {setting.batch_size}, "
        f"{setting.precision}: {result.speed.samples_per_second:.3g} samples/s",
        fontsize=10,
        color="black",
    )
    upper, lower = (figure.add_subplot(2, 1, number) for number in (1, 2))
    left = 0.0
    for part, colour in zip(PARTS, COLOURS, strict=True):
        upper.barh(0, 100 * shares[part], left=100 * left, color=colour, label=f"{part} {shares[part]:.1%}")
        left += shares[part]
    upper.set(xlim=(0, 100), yticks=[])
    upper.set_xlabel("share of a step [%]", fontsize=9, color="black")
    upper.legend(fontsize=8, frameon=False, ncol=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), labelcolor="black")
    flops = result.flops
    bars = {
        "matrix product": flops.matmul_peak_flops,
        "convolution": flops.conv_peak_flops,
        "achieved": flops.achieved or 0.0,
    }
    drawn = lower.barh(list(bars), [value / 1e12 for value in bars.values()], color=["#BBBBBB", "#BBBBBB", COLOURS[0]])
    labels = [f"{value / 1e12:.3g}" if value else "not counted" for value in bars.values()]
    lower.bar_label(drawn, labels, padding=3, fontsize=8, color="black")
    lower.margins(x=0.12)
    lower.set_xlabel(f"TFLOP/s on {setting.device}", fontsize=9, color="black")
    for axes in (upper, lower):
        _style(axes)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _style(axes: Axes) -> None:
    # Explicit colours and sizes: nnU-Net's own plots change matplotlib's defaults for the whole process.
    axes.set_facecolor("white")
    axes.tick_params(labelsize=8, colors="black", length=3)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color="#888888", linewidth=0.8)
