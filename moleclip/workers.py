"""Processes that are watched from outside: RDKit may crash or never return.

Neither can be caught from inside a process, so molecules are worked on in processes of their own.
"""

import importlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import click
from rdkit import RDLogger

from moleclip.files import ROOT
from moleclip.molecules import Rejected

TIME_LIMIT = 60  # seconds for one molecule: a backstop only, the cap on atoms decides first


class WorkerDied(Exception):
    """A worker process ended or was killed; the message says why."""


class Worker:
    """A process that applies a function to lists of (row, text, problem).

    It is killed when one list takes too long. function: of a module that can be imported.
    """

    def __init__(self, function, options):
        start = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from moleclip import workers; "
            f"workers.worker_main({function.__module__!r}, {function.__name__!r}, {options!r})"
        )
        self.command = [sys.executable, "-c", start]
        self.process, self.closed = None, False

    def start(self):
        """Start the process and wait until it is ready. Raises WorkerDied once closed."""
        if self.closed:
            raise WorkerDied("the run was ended")
        # A session of its own: Ctrl-C is for the parent alone, which then ends its workers.
        self.process = process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        if self.closed:  # while it was being made
            self.close()
        try:
            pickle.load(process.stdout)
        except (EOFError, OSError, ValueError):
            if self.closed:
                raise WorkerDied("the run was ended") from None
            raise click.ClickException(
                f"a worker process can't start (exit {self.close()}); its message stands above"
            ) from None

    def run(self, items, limit):
        """Return the list of results, or raise WorkerDied; the next call starts a new process."""
        if self.process is None:
            self.start()
        slow, process = threading.Event(), self.process
        timer = threading.Timer(limit or 0, lambda: (slow.set(), process.kill()))
        if limit:
            timer.start()
        try:
            pickle.dump(items, process.stdin)
            process.stdin.flush()
            reply = pickle.load(process.stdout)
        except (EOFError, OSError, ValueError, AttributeError, pickle.UnpicklingError):
            code = self.close()
            if self.closed:
                raise WorkerDied("the run was ended") from None
            reason = (
                f"took longer than {limit} s" if slow.is_set() else f"crashed RDKit (exit {code})"
            )
            raise WorkerDied(reason) from None
        finally:
            timer.cancel()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self):
        """Kill the process, if there is one, and return its exit code."""
        process, self.process = self.process, None
        if process:
            process.kill()
            process.stdout.close()
            return process.wait()


def worker_main(module, name, options):
    """Run the loop of a worker process: lists of items in, lists of results out, both pickled.

    It ends in silence when the parent has gone.
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the replies
    RDLogger.DisableLog("rdApp.*")
    function, reply = getattr(importlib.import_module(module), name), "ready"
    try:
        while True:
            pickle.dump(reply, replies)
            replies.flush()
            items = pickle.load(sys.stdin.buffer)
            try:
                reply = [try_item(function, *item, options) for item in items]
            except click.ClickException as error:  # nothing a row is to blame for: a missing font
                reply = error
            except OSError as error:  # a file that all rows need
                reply = click.ClickException(f"{name.replace('_', ' ')}: {error}")
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)  # there is nobody to write what is left to


def try_item(function, row, text, problem, options):
    """Return function(row, text), or the Rejected that says what went wrong: no row ends a run."""
    if problem:
        return Rejected(problem)
    try:
        return function(row, text, **options)
    except Rejected as reason:
        return reason
    except (ValueError, RuntimeError, ArithmeticError, LookupError, MemoryError) as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Rejected(f"RDKit failed: {words}")


class Results:
    """What `parallel` gives: an iterator that may be closed while another thread is in it."""

    def __init__(self, crew, pairs):
        self.crew, self.pairs = crew, pairs

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.pairs)

    def close(self):
        """End the worker processes; a thread that waits for one gets a `Rejected` at once."""
        dismiss(self.crew)
        with suppress(ValueError):  # another thread is in it, and will close it
            self.pairs.close()


def dismiss(crew):
    """End worker processes for good."""
    for worker in crew:
        worker.closed = True
        worker.close()


def parallel(function, molecules, workers=None, group=32, limit=TIME_LIMIT, room=3, **options):
    """Return an iterator of (molecule, result) for an iterable of `Molecule`, in its order.

    Worker processes compute function(row, smiles, **options), `group` molecules at a time. The
    iterable is read `room` groups a process ahead, no further. A result is a `Rejected` where a
    molecule can't be used, or killed or stalled its process; all others are unharmed.
    """
    crew = [Worker(function, options) for _ in range(workers or default_workers())]
    return Results(crew, in_order(crew, iter(molecules), group, limit, room * len(crew)))


def in_order(crew, source, group, limit, room):
    """Yield the (molecule, result) pairs of `parallel`."""
    idle, pending, pool = queue.SimpleQueue(), deque(), ThreadPoolExecutor(len(crew))
    for worker in crew:
        idle.put(worker)

    def work(batch):
        worker = idle.get()
        try:
            return run_or_split(worker, [(m.row, m.smiles, m.problem) for m in batch], limit)
        finally:
            idle.put(worker)

    try:
        while True:
            while len(pending) < room and (batch := list(itertools.islice(source, group))):
                pending.append((batch, pool.submit(work, batch)))
            if not pending:
                return
            batch, results = pending.popleft()
            yield from zip(batch, results.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        dismiss(crew)


def run_or_split(worker, items, limit):
    """Return the results of items; after a death one by one, which finds and spares."""
    try:
        return worker.run(items, limit)
    except WorkerDied as reason:
        if len(items) == 1 or worker.closed:
            return [Rejected(str(reason))] * len(items)
        return [run_or_split(worker, [item], limit)[0] for item in items]


def prefetch(items, room):
    """Yield the items of a generator, which a thread of its own reads up to `room` in advance."""
    ready, space, ended = queue.SimpleQueue(), threading.Semaphore(room), threading.Event()

    def read():
        try:
            for item in items:
                space.acquire()
                if ended.is_set():
                    break
                ready.put((item, None))
            ready.put((None, StopIteration()))
        except BaseException as error:  # raised again where the items are wanted
            ready.put((None, error))
        finally:
            items.close()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error:
                raise error
            space.release()
            yield item
    finally:
        ended.set()
        space.release()
        with suppress(ValueError):  # a generator that the thread is in
            items.close()
        thread.join(1)


def default_workers():
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
