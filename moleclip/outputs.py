"""What predict.py writes: predictions.csv, embeddings beside it, safe from interruption."""

import csv
import io
import json
import os
import signal
import threading
from contextlib import contextmanager, suppress

import click
import numpy as np

from moleclip.files import one_line, open_locked, packed, save_whole


class ResumableCsv:
    """predictions.csv, and the embeddings if wanted, under the names they have while incomplete.

    After each window OUT.part.json says how much of them is whole, and what they were made of. An
    interrupted run is cut back to that and goes on with the window after it, so that nothing shows
    where it was interrupted. facts: what the run was asked for, with the CSV's "columns"; width:
    numbers of an embedding; rows, failed: counts of what is written.
    """

    def __init__(self, path, embeddings, width, facts, resume):
        self.path, self.embeddings, self.width, self.facts = path, embeddings, width, facts
        self.files = {"csv": part_of(path)} | ({"npy": part_of(embeddings)} if embeddings else {})
        self.journal = path.with_name(path.name + ".part.json")
        self.rows, self.failed, self.noted, self.streams = 0, 0, 0, {}
        try:
            for kind, name in self.files.items():
                self.streams[kind] = open_locked(name)
            work = self.journal.exists() and (resume or self.files["csv"].stat().st_size > 0)
            whole = self.read_journal(resume) if work else {}
        except click.ClickException:
            self.close(lambda stream: not os.fstat(stream.fileno()).st_size)
            raise
        for kind, stream in self.streams.items():
            stream.truncate(whole.get(kind, 0))
            stream.seek(0, os.SEEK_END)
        if not whole:
            self.write_lines([facts["columns"]])
            if embeddings:
                np.lib.format.write_array_header_1_0(self.streams["npy"], self.header(0))

    def close(self, useless=lambda stream: False):
        """Close the files and let go of them; those that are useless are removed first."""
        for kind, stream in self.streams.items():
            with suppress(OSError):
                if useless(stream):
                    self.files[kind].unlink(missing_ok=True)
                stream.close()

    def read_journal(self, resume):
        """Return {kind: bytes that are whole} of the run that was interrupted.

        Raises click.ClickException if it isn't to be resumed, or can't be.
        """
        part, journal = self.files["csv"], self.journal
        if not resume:
            raise click.ClickException(
                f"{part}: an interrupted run's work lies here; "
                f"go on with --resume, or delete it and {journal.name}"
            )
        try:
            before = json.loads(journal.read_text())
            self.compare_facts(before["facts"])
            self.rows, self.failed, self.noted = (before[k] for k in ("rows", "failed", "noted"))
            sizes = before["bytes"]
            whole = all(self.files[kind].stat().st_size >= sizes[kind] for kind in self.files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise click.ClickException(
                f"--resume: {part} or {journal.name} is damaged or incomplete; "
                "delete both and start again"
            )
        return sizes

    def compare_facts(self, before):
        """Raise click.ClickException if the interrupted run was asked for something else."""
        for key, now in self.facts.items():
            if before.get(key) != now:
                raise click.ClickException(
                    f"--resume: {self.files['csv']} was made with another {key} "
                    f"({str(before.get(key))[:40]}, now {str(now)[:40]}); "
                    f"give the same, or delete it and {self.journal.name}"
                )

    def header(self, rows):
        """Return the header of a .npy of so many embeddings."""
        return {"descr": "<f4", "fortran_order": False, "shape": (rows, self.width)}

    def write_lines(self, lines):
        """Append lines, each a list of cells, to the CSV."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        written = text.getvalue().encode("utf-8", "surrogateescape")
        self.streams["csv"].write(packed(self.path, written))

    def write(self, lines, embeddings):
        """Append one window: CSV lines, and embeddings float32 (len(lines), width)."""
        self.write_lines(lines)
        if self.embeddings:
            self.streams["npy"].write(np.ascontiguousarray(embeddings, "<f4").tobytes())
        for stream in self.streams.values():
            stream.flush()
        self.rows += len(lines)
        self.failed += sum(line[-1] != "" for line in lines)
        self.noted += sum(line[-2] != "" for line in lines)
        sizes = {kind: stream.tell() for kind, stream in self.streams.items()}
        state = {"rows": self.rows, "failed": self.failed, "noted": self.noted}
        state |= {"bytes": sizes, "facts": self.facts}
        save_whole(self.journal, lambda name: name.write_text(json.dumps(state)))

    def finish(self):
        """Give the complete files their names."""
        if self.embeddings:
            self.streams["npy"].seek(0)  # the header has room for any number of rows
            np.lib.format.write_array_header_1_0(self.streams["npy"], self.header(self.rows))
        for stream in self.streams.values():
            stream.flush()
        if os.name == "nt":
            self.close()  # an open file can't be renamed there; elsewhere it keeps its lock so long
        for kind, name in self.files.items():
            os.replace(name, self.path if kind == "csv" else self.embeddings)
        self.journal.unlink(missing_ok=True)
        self.close()

    @contextmanager
    def guarded(self, resumable):
        """Finish when the block ends; if it breaks off, keep what --resume can go on with.

        Raises click.ClickException, with one line of what happened; code 130 if interrupted.
        """
        with interrupted_by_sigterm():
            try:
                yield
                self.finish()
            except BaseException as error:
                kept, message = self.leave(resumable), self.explain(error)
                if message is None:
                    raise
                if kept:
                    message += f"; {self.rows} rows are kept in {self.files['csv']}"
                    message += ", go on with --resume"
                stopped = click.ClickException(message)
                stopped.exit_code = 130 if isinstance(error, KeyboardInterrupt) else 1
                raise stopped from None

    def explain(self, error):
        """Return in one line what a run broke off for, or None where that is our own mistake."""
        if "onnxruntime" in type(error).__module__:
            return f"the model failed while it ran ({one_line(error)}); try a smaller --batch"
        if isinstance(error, KeyboardInterrupt):
            return "interrupted"
        if isinstance(error, OSError):
            return f"{self.path}: can't be written ({error.strerror or one_line(error)})"
        return error.message if isinstance(error, click.ClickException) else None

    def leave(self, resumable):
        """Close after an interruption. Return True if there is work that --resume can go on with.

        Else remove what there is.
        """
        kept = resumable and self.rows > 0
        if not kept:
            self.journal.unlink(missing_ok=True)
        self.close(lambda stream: not kept)
        return kept


def part_of(path):
    """Return the name of a file while it is incomplete."""
    return path.with_name(path.name + ".part")


@contextmanager
def interrupted_by_sigterm():
    """Take SIGTERM as Ctrl-C while the block runs; signals are the main thread's alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if before is not None:  # of a handler that Python knows
            signal.signal(signal.SIGTERM, before)
