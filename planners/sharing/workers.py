"""Work on cases in spawned processes that may die: of a full memory, or of a library that crashes on a bad file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.signals import children_hold_back, obey

READY = "ready"
POLL = 1.0  # seconds between two questions for more work


class Died(NamedTuple):
    """The result of a case that took its process with it, also when nothing else was running."""

    reason: str


class Task(NamedTuple):
    """A case and the arguments it is worked on with."""

    case: str
    arguments: tuple[Any, ...]


# What hands out tasks: the next one; None when there is nothing to do at the moment; StopIteration when all is done.
Source = Iterator[Task | None]


def work_off(
    function: Callable[..., Any], source: Source, num_processes: int, shared: tuple[Any, ...]
) -> Iterator[tuple[str, Any]]:
    """(case, function(*arguments, *shared)) in the order they finish; in this process when there is to be no other.

    A single one is a process of its own as well: what an image does to it, it does not do to this one, which can say which
    image it was. A case whose process dies beside others is tried once more, on its own; then its result is Died. What
    `function` raises is raised here, but for MemoryError, which counts as a death.
    """
    if num_processes <= 0:
        yield from _one_by_one(function, source, shared)
        return
    crew = _Crew(function, shared)
    again: list[Task] = []
    try:
        for task, result in crew.work(source, num_processes):
            if isinstance(result, Died) and num_processes > 1:
                again.append(task)
            else:
                yield task.case, result
        for task, result in crew.work(iter(again), 1):
            yield task.case, result
    finally:
        crew.dismiss()


def _one_by_one(function: Callable[..., Any], source: Source, shared: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for task in source:
        if task is None:
            time.sleep(POLL)
            continue
        try:
            result = function(*task.arguments, *shared)
        except MemoryError:
            result = Died(_describe(None))
        yield task.case, result


@dataclass
class _Worker:
    process: Any
    connection: Connection
    task: Task | None = None
    ready: bool = False


class _Crew:
    def __init__(self, function: Callable[..., Any], shared: tuple[Any, ...]) -> None:
        self.function, self.shared = function, shared
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[_Worker] = []

    def work(self, source: Source, number: int) -> Iterator[tuple[Task, Any]]:
        """All tasks of `source`, at most `number` at a time."""
        exhausted = False
        while True:
            while not exhausted and sum(w.task is not None for w in self.workers) < number:
                try:
                    task = next(source)
                except StopIteration:
                    exhausted = True
                    break
                if task is None:
                    break
                self._hand_out(task)
            busy = [w for w in self.workers if w.task is not None]
            if not busy:
                if exhausted:
                    return
                time.sleep(POLL)
                continue
            connections: list[Any] = [w.connection for w in busy]
            ready = wait(connections, timeout=POLL)
            for worker in [w for w in busy if w.connection in ready]:
                collected = self._collect(worker)
                if collected is not None:
                    yield collected

    def _hand_out(self, task: Task) -> None:
        worker = next((w for w in self.workers if w.task is None), None) or self._hire()
        worker.task = task
        with suppress(OSError):  # it died while it had nothing to do; collecting finds out
            worker.connection.send(task.arguments)

    def _collect(self, worker: _Worker) -> tuple[Task, Any] | None:
        """A task's result, None where the worker has only just begun; raises CorpusError when it never began."""
        task = worker.task
        assert task is not None
        try:
            failed, result = worker.connection.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            worker.process.join()
            if not worker.ready:
                raise CorpusError(
                    f"A worker process ended before it began (exit code {worker.process.exitcode}); its own message is "
                    "above. If the memory was full, run the same command again with fewer processes, e.g. -np 1."
                ) from None
            return task, Died(_describe(worker.process.exitcode))
        if result == READY and not worker.ready:
            worker.ready = True
            return None
        worker.task = None
        if isinstance(result, MemoryError):
            return task, Died(_describe(None))
        if failed:
            raise result
        return task, result

    def _hire(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        arguments = (os.getpid(), theirs, self.function, self.shared)
        process = self.context.Process(target=_serve, args=arguments, daemon=True)
        with children_hold_back():
            process.start()
        theirs.close()  # so that its death is the end of the connection
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def dismiss(self) -> None:
        for worker in self.workers:
            worker.connection.close()
            if worker.task is not None:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join()


def _serve(parent: int, connection: Connection, function: Callable[..., Any], shared: tuple[Any, ...]) -> None:
    obey(parent)
    import torch

    torch.set_num_threads(1)
    try:
        connection.send((False, READY))
    except OSError:
        return  # the parent has left while this process began
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((False, function(*arguments, *shared)))
        except OSError as error:
            if connection.closed or isinstance(error, BrokenPipeError):
                return  # the parent is gone
            connection.send((True, error))
        except MemoryError as error:
            connection.send((True, error))
        except Exception as error:
            traceback.print_exc()
            connection.send((True, error if isinstance(error, CorpusError) else RuntimeError(repr(error))))


def _describe(exit_code: int | None) -> str:
    if exit_code is None:
        return "there was not enough memory for it, even with nothing else running"
    name = f"exit code {exit_code}"
    if exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
    cause = {"SIGKILL": ", most likely for want of memory", "SIGSEGV": ", a crash in a library"}.get(name, "")
    return f"it killed the process that worked on it, with nothing else running ({name}{cause})"
