"""One function applied to every case, in spawned processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.progress_bars import progress_bar
from nnunet_ssl.signals import children_hold_back, obey

T = TypeVar("T")


def work_through(
    function: Callable[..., T],
    tasks: Mapping[str, tuple[Any, ...]],
    num_processes: int,
    description: str,
    show_progress: bool = True,
) -> Iterator[tuple[str, T]]:
    """(case, function(*arguments)) in the order they finish; in this process when one is enough.

    What `function` raises is raised here. Raises CorpusError when a process was killed.
    """
    with progress_bar(desc=description, total=len(tasks), disable=not (show_progress and tasks)) as bar:
        for result in _results(function, tasks, min(num_processes, len(tasks))):
            bar.update()
            yield result


def _results(
    function: Callable[..., T], tasks: Mapping[str, tuple[Any, ...]], num_processes: int
) -> Iterator[tuple[str, T]]:
    if num_processes <= 1:
        for case, arguments in tasks.items():
            yield case, function(*arguments)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=obey, initargs=(os.getpid(),))
    try:
        with children_hold_back():
            futures = {pool.submit(function, *arguments): case for case, arguments in tasks.items()}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise CorpusError(
            f"One of {num_processes} worker processes was killed, most likely because the memory was full. Run the "
            f"same command again with fewer processes, e.g. -np {max(1, num_processes // 2)}; preprocessing continues where "
            "it stopped. If that does not help, look for an image that is far larger than the others."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
