"""One function applied to every case, in spawned processes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
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


def work_ahead(
    function: Callable[..., T], tasks: Mapping[str, tuple[Any, ...]], num_processes: int, ahead: int = 2
) -> Iterator[tuple[str, T]]:
    """(case, function(*arguments)) in the order of the tasks, for somebody who takes long over each.

    Processes work at most `ahead` results per process ahead of who takes them, so that results never pile up. With no processes
    everything happens in this one. What `function` raises is raised here. Raises CorpusError when a process was killed.
    """
    if num_processes <= 0 or not tasks:
        yield from _results(function, tasks, 1)
        return
    waiting, begun = iter(tasks.items()), deque[tuple[str, Future[T]]]()
    with _pool(min(num_processes, len(tasks))) as pool:
        while True:
            with children_hold_back():
                for case, arguments in islice(waiting, num_processes * ahead - len(begun)):
                    begun.append((case, pool.submit(function, *arguments)))
            if not begun:
                return
            case, future = begun.popleft()
            yield case, future.result()


def _results(
    function: Callable[..., T], tasks: Mapping[str, tuple[Any, ...]], num_processes: int
) -> Iterator[tuple[str, T]]:
    if num_processes <= 1:
        for case, arguments in tasks.items():
            yield case, function(*arguments)
        return
    with _pool(num_processes) as pool:
        with children_hold_back():
            futures = {pool.submit(function, *arguments): case for case, arguments in tasks.items()}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()


@contextmanager
def _pool(num_processes: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes that end with this one; raises CorpusError for one that was killed."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=obey, initargs=(os.getpid(),))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise CorpusError(
            f"One of {num_processes} worker processes was killed, most likely because the memory was full. Run the "
            f"same command again with fewer processes, e.g. -np {max(1, num_processes // 2)}; it continues where "
            "it stopped. If that does not help, look for an image that is far larger than the others."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
