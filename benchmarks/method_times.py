"""Seconds per pre-training step of several methods on one backbone, in blocks that take turns; see `methods.py`."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from few_labels import Protocol, make_trainer, prepare

STEPS = 3  # per block


def ready_trainer(protocol: Protocol, plans: dict[str, Any], method: str) -> tuple[Any, Any]:
    """A trainer in its first epoch, and a batch of its own training data."""
    from nnunet_ssl.trainers.launch import trainer_class

    settings = {"num_epochs": 2, "num_iterations_per_epoch": 10**6, "seed": protocol.seeds[0]}
    trainer = make_trainer(trainer_class(method), plans, "all", "ssl", settings, protocol.device)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer, next(trainer.dataloader_train)


def seconds(trainer: Any, batch: Any, steps: int) -> float:
    """Mean seconds of a step: pretext task, forward, backward, optimiser; without loading."""
    start = time.perf_counter()
    for _ in range(steps):
        loss = trainer.train_step(batch)["loss"]
    loss.item()  # waits for the device
    return (time.perf_counter() - start) / steps


def main(folder: Path, backbone: str, blocks: int, methods: list[str]) -> None:
    """Write results/<backbone>/times.json: seconds, and multiples of the time of `mae`, medians over the blocks."""
    protocol = Protocol.read(folder)
    pool, _ = prepare(protocol, folder, backbone)
    trainers = {name: ready_trainer(protocol, pool, name) for name in dict.fromkeys(["mae", *methods])}
    for trainer, batch in trainers.values():
        seconds(trainer, batch, 1)
    measured: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(blocks):
        for name, (trainer, batch) in trainers.items():
            measured[name].append(seconds(trainer, batch, STEPS))
    times = {
        name: {
            "seconds": statistics.median(values),
            "relative": statistics.median(v / m for v, m in zip(values, measured["mae"], strict=True)),
            "batch_size": trainers[name][0].total_batch_size,
        }
        for name, values in measured.items()
    }
    file = folder / "results" / backbone / "times.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(times, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
