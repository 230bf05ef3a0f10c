"""Jobs for several processes from one common order: each takes the next ones when it has need, none waits for another.

The first process knows the jobs, lays them out a block at a time, and takes all results; the board is the key-value
store of the job's coordinator (`processes.Board`).
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from itertools import islice

import jax

from mlingo_jax.captioning.pump import Job, Pump, Result
from mlingo_jax.captioning.tracks import Track
from mlingo_jax.inference.clips import CLIPS
from mlingo_jax.processes import Board, is_primary

# Jobs that a process takes at a time; the fewest that lie ready or are worked on for each process: more than one may
# hold before the first is answered, or all would wait for further ones.
BLOCK, READY = 8, 2 * CLIPS
# How often the first process looks for the others' results, in seconds.
EVERY = 0.2


def results(pump: Pump, jobs: Iterable[Job], rows: int) -> Iterator[Result]:
    """Every job's result, on the first process; on the others nothing, but their share of the work is done.

    jobs: only the first process's count. rows: of a process's engine, which are to find enough to do.
    """
    if jax.process_count() == 1:
        yield from pump.run(jobs)
        return
    board = Board()
    if not is_primary():
        for result in pump.run(_taken(board)):
            board.put(f"result/{result.number}", [result.number, result.lines])
        return
    collector = _Collector(board, jobs, jax.process_count() * max(READY, 4 * rows))
    for result in pump.run(_taken(board)):
        yield result
        collector.own()
        yield from collector.arrived()
    yield from collector.rest()


def _taken(board: Board) -> Iterator[Job]:
    """The jobs that this process takes, a block at a time, until none is left."""
    while (block := board.take(f"block/{board.next('taken')}")) is not None:
        for number, path, name, questions in block:
            yield Job(number, Track(path, name), tuple(questions))


class _Collector:
    """Lays out the jobs, as many as are needed soon, and takes the results of the others, from threads of its own."""

    def __init__(self, board: Board, jobs: Iterable[Job], room: int):
        self._board = board
        self._results: queue.Queue[Result | BaseException] = queue.Queue()
        self._room = threading.Semaphore(room)
        self._laid = self._received = 0
        self._all_laid = threading.Event()
        self._stopped = threading.Event()
        for target, *arguments in ((self._lay, jobs), (self._collect,)):
            threading.Thread(target=self._guarded, args=(target, *arguments), daemon=True).start()

    def own(self) -> None:
        """This process has answered a job."""
        self._received += 1
        self._room.release()

    def arrived(self) -> Iterator[Result]:
        """The others' results that have come."""
        while not self._results.empty():
            yield self._take()

    def rest(self) -> Iterator[Result]:
        """The results that are still to come."""
        while not (self._all_laid.is_set() and self._received == self._laid):
            try:
                yield self._take(EVERY)
            except queue.Empty:
                continue
        self._stopped.set()

    def _take(self, timeout: float | None = None) -> Result:
        result = self._results.get(timeout=timeout)
        if isinstance(result, BaseException):
            raise result
        self._received += 1
        return result

    def _guarded(self, target, *arguments) -> None:
        try:
            target(*arguments)
        except BaseException as error:
            self._results.put(error)

    def _lay(self, jobs: Iterable[Job]) -> None:
        coming, number = iter(jobs), 0
        while block := list(islice(coming, BLOCK)):
            for _ in block:
                self._room.acquire()
            self._laid += len(block)
            values = [[job.number, job.track.path, job.track.id, job.questions] for job in block]
            self._board.put(f"block/{number}", values)
            number += 1
        for process in range(jax.process_count()):
            self._board.put(f"block/{number + process}", None)
        self._all_laid.set()

    def _collect(self) -> None:
        while not self._stopped.wait(EVERY):
            for number, lines in self._board.take_all("result"):
                self._results.put(Result(number, lines))
                # Here, not where it is taken: there this process may be waiting for a further job itself.
                self._room.release()
