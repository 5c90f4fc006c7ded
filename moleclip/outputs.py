"""TODO"""

import csv
import io
import itertools
import json
import os
import signal
import threading
from contextlib import contextmanager, suppress

import click
import numpy as np

from moleclip.features import featurize
from moleclip.files import ROOT, one_line, save_whole
from moleclip.molecules import Molecule, Rejected
from moleclip.pixels import inflate, png
from moleclip.workers import parallel

REPORTED = 5000  # rows in the page of --html: 15 MB; no browser likes a larger one


class ResumableCsv:
    """predictions.csv, and the embeddings if they are wanted, under the names they have while they are incomplete.

    After each window OUT.part.json says how much of them is whole, and what they were made of. An interrupted run is cut back
    to that and goes on with the window after it, so that nothing shows where it was interrupted.
    """

    def __init__(self, path, embeddings, width, facts, resume):
        self.path, self.embeddings, self.width, self.facts = path, embeddings, width, facts
        self.files = {"csv": part_of(path)} | ({"npy": part_of(embeddings)} if embeddings else {})
        self.journal, self.rows, self.failed, sizes = (
            path.with_name(path.name + ".part.json"),
            0,
            0,
            {},
        )
        if self.journal.exists():
            sizes = self.read_journal(resume)
        self.streams = {}
        try:
            for kind, name in self.files.items():
                name.parent.mkdir(parents=True, exist_ok=True)
                self.streams[kind] = open(name, "r+b" if kind in sizes else "w+b")
                self.streams[kind].truncate(sizes.get(kind, 0))
                self.streams[kind].seek(0, os.SEEK_END)
        except OSError as error:
            raise click.ClickException(
                f"{name.with_suffix('')}: can't be written ({error.strerror})"
            ) from None
        if not sizes:
            self.write_lines([facts["columns"]])
            if embeddings:
                np.lib.format.write_array_header_1_0(self.streams["npy"], self.header(0))

    def read_journal(self, resume):
        """Return {kind: bytes that are whole} of the run that was interrupted. Raises click.ClickException if it isn't to be resumed."""
        if not resume:
            raise click.ClickException(
                f"{self.files['csv']}: an interrupted run's work lies here; go on with --resume, or delete it and {self.journal.name}"
            )
        try:
            before = json.loads(self.journal.read_text())
            wrong = next(
                (key for key in self.facts if before["facts"].get(key) != self.facts[key]), None
            )
            if wrong:
                raise click.ClickException(
                    f"--resume: {self.files['csv']} was made with another {wrong} ({str(before['facts'].get(wrong))[:40]}, "
                    f"now {str(self.facts[wrong])[:40]}); give the same, or delete it and {self.journal.name}"
                )
            self.rows, self.failed, sizes = before["rows"], before["failed"], before["bytes"]
            whole = all(self.files[kind].stat().st_size >= sizes[kind] for kind in self.files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise click.ClickException(
                f"--resume: {self.files['csv']} or {self.journal.name} is damaged or incomplete; delete both and start again"
            )
        return sizes

    def header(self, rows):
        return {"descr": "<f4", "fortran_order": False, "shape": (rows, self.width)}

    def write_lines(self, lines):
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        self.streams["csv"].write(text.getvalue().encode("utf-8", "surrogateescape"))

    def write(self, lines, failed, embeddings):
        """Append one window: CSV lines, and embeddings float32 (len(lines), width)."""
        self.write_lines(lines)
        if self.embeddings:
            self.streams["npy"].write(np.ascontiguousarray(embeddings, "<f4").tobytes())
        for stream in self.streams.values():
            stream.flush()
        self.rows, self.failed = self.rows + len(lines), self.failed + failed
        state = {
            "rows": self.rows,
            "failed": self.failed,
            "bytes": {kind: s.tell() for kind, s in self.streams.items()},
            "facts": self.facts,
        }
        save_whole(self.journal, lambda name: name.write_text(json.dumps(state)))

    def finish(self):
        """Give the complete files their names."""
        if self.embeddings:
            self.streams["npy"].seek(0)  # the header has room for any number of rows
            np.lib.format.write_array_header_1_0(self.streams["npy"], self.header(self.rows))
        for stream in self.streams.values():
            stream.close()
        for kind, name in self.files.items():
            os.replace(name, self.path if kind == "csv" else self.embeddings)
        self.journal.unlink(missing_ok=True)

    @contextmanager
    def guarded(self, resumable):
        """Finish when the block ends; if it breaks off, keep what --resume can go on with, and say in one line what happened."""

        def stop(number, frame):
            raise KeyboardInterrupt

        before = (
            signal.signal(signal.SIGTERM, stop)
            if threading.current_thread() is threading.main_thread()
            else None
        )
        try:
            yield
            self.finish()
        except BaseException as error:
            hint = (
                f"; {self.rows} rows are kept in {self.files['csv']}, go on with --resume"
                if self.leave(resumable)
                else ""
            )
            known = {
                KeyboardInterrupt: "interrupted",
                OSError: f"{self.path}: can't be written ({getattr(error, 'strerror', '') or one_line(error)})",
                click.ClickException: getattr(error, "message", ""),
            }
            message = next(
                (words for kind, words in known.items() if isinstance(error, kind)), None
            )
            if "onnxruntime" in type(error).__module__:
                message = (
                    f"the model failed while it ran ({one_line(error)}); try a smaller --batch"
                )
            if message is None:
                raise
            wrapped = click.ClickException(message + hint)
            wrapped.exit_code = 130 if isinstance(error, KeyboardInterrupt) else 1
            raise wrapped from None
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def leave(self, resumable):
        """Close after an interruption. Return True if there is work that --resume can go on with; else remove what there is."""
        for stream in self.streams.values():
            with suppress(OSError):
                stream.close()
        if resumable and self.rows:
            return True
        for name in (*self.files.values(), self.journal):
            name.unlink(missing_ok=True)
        return False


def part_of(path):
    return path.with_name(path.name + ".part")


def write_report(path, table, title, targets, files, workers, **options):
    """Write one self-contained page of the first rows of a finished predictions.csv, each with its picture as the model saw it.

    targets: the columns to stress; files: of picture input, by row; options: those of `prepare`.
    """
    csv.field_size_limit(1 << 24)
    with open(table, newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.reader(stream)
        header, lines = next(reader), list(itertools.islice(reader, REPORTED))
        more = sum(1 for _ in reader)
    molecules = [
        Molecule(
            int(line[0]),
            0,
            str(files[int(line[0])]) if files else line[1],
            line[2],
            problem=line[-1],
        )
        for line in lines
    ]
    drawn = parallel(featurize, molecules, workers, pictures=bool(files), **options)
    images = [
        "" if isinstance(result, Rejected) else png(inflate(result.streams[0]))
        for _, result in drawn
    ]
    data = json.dumps(
        {
            "title": title,
            "columns": header,
            "targets": targets,
            "more": more,
            "rows": lines,
            "images": images,
        }
    )
    data = (
        data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )  # nothing in it can end the script or begin a tag
    page = (ROOT / "moleclip" / "page.html").read_text(encoding="utf-8").replace('"DATA"', data)
    save_whole(path, lambda name: name.write_text(page, encoding="utf-8"))
