"""Predict on new molecules with an exported model. Needs onnxruntime and RDKit, no PyTorch.

    python predict.py model.onnx smiles.txt                   # predictions.csv
    python predict.py model.onnx library.csv --keep-columns --html report.html
    python predict.py model.onnx figure.png                   # a drawn molecule, or a folder of them
    echo "CCO ethanol" | python predict.py model.onnx -

One line comes out for every row that goes in, in the same order; a molecule that can't be read says why in its line.
"""

import base64
import binascii
import csv
import hashlib
import io
import itertools
import json
import os
import signal
import tempfile
import threading
import time
import zlib
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click
import numpy as np
import onnxruntime
from rdkit import rdBase
from tqdm import tqdm

import pictures
import render

FORMAT = 1              # newest metadata format that this script understands
WINDOW = 256            # consecutive rows that are sorted by ink and written together; what an interruption costs at most
BATCH = {"CPU": 8, "CUDA": 64}      # pictures in one call: a small batch stays in a CPU's cache, and its pictures have like ink
BLOCK = render.SHARD    # consecutive rows that belong to one part of --part, as in render.py
OWN = ("row", "smiles", "name", "nearest_training", "error")


# ---------------------------------------------------------------------------------------------------------------------
# The model


class Model:
    """An exported file, ready to run: its session, its metadata `facts`, and `width`, the embedding's length or 0."""

    def __init__(self, path, provider="auto"):
        if not Path(path).is_file():
            raise click.ClickException(f"{path}: no such file; make it with: python export.py runs/NAME -o {path}")
        self.session, self.notice = open_session(path, provider)
        self.facts = read_metadata(path, self.session)
        self.outputs = {output.name: output.shape[1] for output in self.session.get_outputs()}
        self.targets, self.width = self.facts["targets"], self.outputs.get("embedding", 0)
        self.device = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        with open(path, "rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def patch(self):
        """The side of its patches if it skips those without ink, so that ink decides how long a picture takes; else 0."""
        encoder = self.facts.get("encoder", {})
        return encoder["patch"] if encoder.get("tokens") == "inked" else 0

    def columns(self, views):
        """Return the names of the numeric columns: targets, an ensemble's spreads, and with several views theirs."""
        names = [f"predicted_{name}" if name in OWN else name for name in self.targets]
        names += [f"{name}_spread" for name in self.targets if "spread" in self.outputs]
        return names + [f"{name}_view_spread" for name in self.targets if views > 1]

    def slow(self):
        """Return a warning if this is not the place for the file's precision, or ""."""
        return "fp16 is slow on a CPU; export fp32 or int8 for it" if self.facts.get("precision") == "fp16" and self.device == "CPU" else ""

    def run(self, streams):
        """Return {output: float32 (n, width)} of pictures, given as zlib streams."""
        images = render.to_rgb(np.stack([render.inflate(stream) for stream in streams]))
        return dict(zip(self.outputs, self.session.run(list(self.outputs), {"images": images})))


def open_session(path, provider):
    """Return (session, notice in words or ""). auto takes CUDA if it really runs, an explicit cuda that fails is an error."""
    reason = no_cuda() if provider != "cpu" else "not asked for"
    if not reason:
        try:
            session = new_session(path, "CUDAExecutionProvider")
            if session.get_providers()[0] == "CUDAExecutionProvider":
                return try_out(session), ""
            reason = "onnxruntime could not load its CUDA libraries"
        except Exception as error:                           # onnxruntime's own kinds share no base class
            reason = one_line(error)
    if provider == "cuda":
        raise click.ClickException(f"--provider cuda: {reason}; leave the flag out to use the CPU")
    try:
        session = try_out(new_session(path, "CPUExecutionProvider"))
    except Exception as error:
        raise click.ClickException(f"{path}: truncated, or not an ONNX file that runs here ({one_line(error)})") from None
    return session, f"taking the CPU: {reason}" if provider == "auto" and has_gpu() else ""


def new_session(path, provider):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = render.default_workers()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")     # waiting threads leave the cores to the drawing
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


def try_out(session):
    """Run two blank pictures, if the model takes pictures, and return the session: some fail only when they run."""
    inputs = session.get_inputs()
    if [i.name for i in inputs] == ["images"] and inputs[0].type == "tensor(uint8)" and inputs[0].shape[1:] == [render.SIZE, render.SIZE, 3]:
        session.run(None, {"images": np.full((2, render.SIZE, render.SIZE, 3), 255, np.uint8)})
    return session


def no_cuda():
    """Return why CUDA can't be used, or "" if it is worth a try."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA; pip uninstall onnxruntime, pip install 'onnxruntime-gpu[cuda,cudnn]'"
    if not has_gpu():
        return "onnxruntime can't use a GPU here, there is none"
    with suppress(Exception):                                # says on its own what it misses; the session then fails
        onnxruntime.preload_dlls()
    return ""


def has_gpu():
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and (Path("/dev/nvidiactl").exists() or os.name == "nt")


def one_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def read_metadata(path, session):
    """Return the metadata that export.py wrote into a model, with its sketch, uint8 (n, 256), or None. Raises click.ClickException."""
    given = session.get_modelmeta().custom_metadata_map
    inputs, outputs = {i.name: i for i in session.get_inputs()}, {o.name: o for o in session.get_outputs()}
    images = inputs.get("images")
    missing = [] if "moleclip" in given else ["the metadata 'moleclip' with target names and drawing options"]
    missing += [] if images is not None and (images.type, images.shape[1:]) == ("tensor(uint8)", [render.SIZE, render.SIZE, 3]) else [
        "an input 'images', uint8 (batch, 224, 224, 3)"]
    missing += [] if {"prediction", "embedding"} & set(outputs) else ["an output 'prediction' or 'embedding'"]
    if missing:
        raise click.ClickException(f"{path}: not exported by moleclip: it lacks {' and '.join(missing)}; export it with export.py")
    try:
        facts = json.loads(given["moleclip"])
        if facts["format"] > FORMAT:
            raise click.ClickException(f"{path}: was exported by a newer moleclip (format {facts['format']}, this one reads {FORMAT}); update")
        width = outputs["prediction"].shape[1] if "prediction" in outputs else 0
        if [type(name) for name in facts["targets"]] != [str] * width or type(facts["render"]["max_atoms"]) is not int:
            raise ValueError
        packed = zlib.decompress(base64.b64decode(given["moleclip_sketch"])) if "moleclip_sketch" in given else b""
        return facts | {"sketch": np.frombuffer(packed, np.uint8).reshape(-1, pictures.BITS // 8) if packed else None}
    except (TypeError, ValueError, KeyError, IndexError, zlib.error, binascii.Error):
        raise click.ClickException(f"{path}: its metadata 'moleclip' is damaged or not export.py's; export it again") from None


# ---------------------------------------------------------------------------------------------------------------------
# The input


class Source:
    """What is to be predicted: a file of SMILES, standard input, a picture, or a folder of pictures.

    kind: "table", "lines" or "pictures"; header: a table's column names; rows, sha256: None for standard input.
    """

    def __init__(self, path, smiles_column=None):
        self.column, self.folder = smiles_column, Path(path)
        self.kind = "pictures" if self.folder.is_dir() or self.folder.suffix.lower() in pictures.KINDS else None
        if self.kind:
            self.path = str(path)
            self.files = sorted(f for f in self.folder.iterdir() if f.suffix.lower() in pictures.KINDS) if self.folder.is_dir() else [self.folder]
            if not self.files or not self.files[0].exists():
                raise click.ClickException(f"{path}: " + ("holds no .png, .jpg or .jpeg" if self.folder.is_dir() else "no such file"))
            if self.folder.is_file():                        # in a folder, what is no picture has an error in its line
                try:
                    pictures.read_picture(self.folder)
                except render.Rejected as reason:
                    raise click.ClickException(f"{path}: {reason}") from None
            names = "".join(f"{f.name} {f.stat().st_size}\n" for f in self.files)
            self.rows, self.sha256, self.header = len(self.files), hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest(), []
            return
        self.path = render.find_input(path)
        self.kind = render.input_kind(self.path, smiles_column)
        facts = render.input_facts(self.path, smiles_column) if self.path != "-" else {"rows": None, "sha256": None}
        self.rows, self.sha256 = facts["rows"], facts["sha256"]
        self.stream = render.read_molecules(self.path, smiles_column)
        self.first = next(self.stream)                       # a table's column names come with its rows
        self.header = list(self.first.fields)

    def __iter__(self):
        """Yield every row as a `Molecule`; a picture's SMILES is its path."""
        if self.kind == "pictures":
            yield from (render.Molecule(row, row, str(file), file.name) for row, file in enumerate(self.files))
        else:
            yield self.first
            yield from self.stream

    def kept(self, columns):
        """Return {column of the table: its name in the output} of --keep-columns; `columns` are the output's own."""
        if self.kind != "table":
            raise click.ClickException(f"{self.path}: --keep-columns needs a .csv or .tsv; other inputs have no columns")
        smiles = render.find_smiles_column(self.path, self.header, self.column)
        named = {name: f"input_{name}" if name in columns else name for name in self.header if (name, smiles) != ("smiles", "smiles") and name != "name"}
        twice = next((name for name in named.values() if list(named.values()).count(name) > 1), None)
        if twice:
            raise click.ClickException(f"{self.path}: two kept columns would be called {twice!r}; rename one")
        return named


# ---------------------------------------------------------------------------------------------------------------------
# From molecules to predictions


def predict_window(model, prepared, batch):
    """Return one entry for each (molecule, result) of a window: (values, embedding, nearest), or the reason why not, as a string.

    values: float32 (columns,), the model's outputs and the spread over views; embedding: float32 (width,). Pictures with about
    the same ink go into one call, since a model that skips white patches works as long as its fullest picture takes.
    """
    todo = [(result[1][v], i, v) for i, (_, result) in enumerate(prepared) if not isinstance(result, str) for v in range(len(result[0]))]
    todo.sort()
    found = {}
    for part in (todo[start:start + batch] for start in range(0, len(todo), batch)):
        outputs = model.run([prepared[i][1][0][v] for _, i, v in part])
        for k, (_, i, v) in enumerate(part):
            found.setdefault(i, {})[v] = {name: values[k] for name, values in outputs.items()}
    return [result if isinstance(result, str) else gather(found[i], result[2]) for i, (_, result) in enumerate(prepared)]


def gather(views, nearest):
    """Return (values, embedding, nearest) of one molecule from {view: {output: values}}, or what is wrong, as a string."""
    stacked = {name: np.stack([views[v][name] for v in sorted(views)]) for name in views[0]}
    values = [stacked[name].mean(0) for name in ("prediction", "spread") if name in stacked]
    if len(views) > 1 and "prediction" in stacked:
        values.append(stacked["prediction"].std(0))
    values, embedding = np.concatenate(values or [np.zeros(0, np.float32)]), stacked["embedding"].mean(0) if "embedding" in stacked else np.zeros(0)
    if not (np.isfinite(values).all() and np.isfinite(embedding).all()):
        return "the model gives no finite number for it"
    return values, embedding, nearest


# ---------------------------------------------------------------------------------------------------------------------
# The output, written as it goes


class Output:
    """predictions.csv, and the embeddings if they are wanted, under the names they have while they are incomplete.

    After each window OUT.part.json says how much of them is whole, and what they were made of. An interrupted run is cut back
    to that and goes on with the window after it, so that nothing shows where it was interrupted.
    """

    def __init__(self, path, embeddings, width, facts, resume):
        self.path, self.embeddings, self.width, self.facts = path, embeddings, width, facts
        self.files = {"csv": part_of(path)} | ({"npy": part_of(embeddings)} if embeddings else {})
        self.journal, self.rows, self.failed, sizes = path.with_name(path.name + ".part.json"), 0, 0, {}
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
            raise click.ClickException(f"{name.with_suffix('')}: can't be written ({error.strerror})") from None
        if not sizes:
            self.write_lines([facts["columns"]])
            if embeddings:
                np.lib.format.write_array_header_1_0(self.streams["npy"], self.header(0))

    def read_journal(self, resume):
        """Return {kind: bytes that are whole} of the run that was interrupted. Raises click.ClickException if it isn't to be resumed."""
        if not resume:
            raise click.ClickException(f"{self.files['csv']}: an interrupted run's work lies here; go on with --resume, or delete it and {self.journal.name}")
        try:
            before = json.loads(self.journal.read_text())
            wrong = next((key for key in self.facts if before["facts"].get(key) != self.facts[key]), None)
            if wrong:
                raise click.ClickException(f"--resume: {self.files['csv']} was made with another {wrong} ({str(before['facts'].get(wrong))[:40]}, "
                                           f"now {str(self.facts[wrong])[:40]}); give the same, or delete it and {self.journal.name}")
            self.rows, self.failed, sizes = before["rows"], before["failed"], before["bytes"]
            whole = all(self.files[kind].stat().st_size >= sizes[kind] for kind in self.files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise click.ClickException(f"--resume: {self.files['csv']} or {self.journal.name} is damaged or incomplete; delete both and start again")
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
        state = {"rows": self.rows, "failed": self.failed, "bytes": {kind: s.tell() for kind, s in self.streams.items()}, "facts": self.facts}
        render.save_whole(self.journal, lambda name: name.write_text(json.dumps(state)))

    def finish(self):
        """Give the complete files their names."""
        if self.embeddings:
            self.streams["npy"].seek(0)                      # the header has room for any number of rows
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

        before = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
        try:
            yield
            self.finish()
        except BaseException as error:
            hint = f"; {self.rows} rows are kept in {self.files['csv']}, go on with --resume" if self.leave(resumable) else ""
            known = {KeyboardInterrupt: "interrupted", OSError: f"{self.path}: can't be written ({getattr(error, 'strerror', '') or one_line(error)})",
                     click.ClickException: getattr(error, "message", "")}
            message = next((words for kind, words in known.items() if isinstance(error, kind)), None)
            if "onnxruntime" in type(error).__module__:
                message = f"the model failed while it ran ({one_line(error)}); try a smaller --batch"
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


# ---------------------------------------------------------------------------------------------------------------------


def predict_all(model, source, output, kept, views, batch, part, workers, options):
    """Predict the rows of `source` that belong to `part` and are not in `output` yet, window by window, while others are drawn.

    Windows end where blocks do, so that the same rows are predicted together whatever the part and wherever a run went on.
    """
    (index, parts), size = part, WINDOW if batch <= WINDOW // 4 else BLOCK
    mine = lambda row: row // BLOCK % parts == index - 1
    total = source.rows and sum(min(BLOCK, source.rows - first) for first in range(0, source.rows, BLOCK) if mine(first))
    wanted = itertools.islice((molecule for molecule in source if mine(molecule.row)), output.rows, None)
    prepared = render.parallel("pictures:prepare", wanted, workers, views=views, pictures=source.kind == "pictures", **options)
    window_of = lambda pair: (pair[0].row // BLOCK, pair[0].row % BLOCK // size)
    with closing(render.ahead(prepared, 2 * size)) as drawn, tqdm(total=total, initial=output.rows, desc="predicting", unit=" molecules", disable=None) as bar:
        for _, window in itertools.groupby(drawn, window_of):
            window, lines = list(window), []
            results = predict_window(model, window, batch)
            embeddings = np.full((len(window), model.width), np.nan, np.float32)
            for i, ((molecule, _), result) in enumerate(zip(window, results)):
                smiles = "" if source.kind == "pictures" else molecule.smiles
                own = [molecule.row, smiles, molecule.name or molecule.fields.get("name", ""), *(molecule.fields.get(name, "") for name in kept)]
                lines.append(own + cells(result, output.facts["columns"], len(own)))
                if not isinstance(result, str):
                    embeddings[i] = result[1]
            output.write(lines, sum(isinstance(result, str) for result in results), embeddings)
            bar.update(len(window))


def cells(result, columns, first):
    """Return what stands in the columns from number `first` on: values, nearest_training if there is such a column, error."""
    if isinstance(result, str):
        return [""] * (len(columns) - first - 1) + [result]
    values, _, nearest = result
    likeness = ["" if nearest is None else f"{nearest:.3f}"] if "nearest_training" in columns[first:] else []
    return [*(f"{value:.7g}" for value in values), *likeness, ""]


def tailed(path, index, parts):
    """Return the name of a part's own file: predictions-2-of-8.csv."""
    return path.with_name(f"{path.stem}-{index}-of-{parts}{path.suffix}") if parts > 1 else path


@click.command()
@click.argument("model")
@click.argument("source")
@click.option("-o", "--out", default="predictions.csv", show_default=True, type=click.Path(path_type=Path), help="CSV to write.")
@click.option("--keep-columns", is_flag=True, help="Keep the other columns of a .csv or .tsv.")
@click.option("--views", default=1, show_default=True, type=click.IntRange(1), help="Drawings of each molecule to predict from; the first is plain.")
@click.option("--embeddings", default=None, type=click.Path(path_type=Path), help="Write the encoder's output too, a .npy of float32.")
@click.option("--html", default=None, type=click.Path(path_type=Path), help="Write a page with the molecules drawn, to sort and filter.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run with the same arguments ended.")
@click.option("--part", default=None, callback=render.parse_part, help="I/N: predict every N-th block of 1024 rows from the I-th, for a job array.")
@click.option("--batch", default=None, type=click.IntRange(1), help="Pictures in one call of the model.  [default: 8 on a CPU, 64 on a GPU]")
@click.option("--provider", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Where the model runs.")
@click.option("--workers", default=None, type=click.IntRange(1), help="Drawing processes.  [default: one a core]")
@click.option("--smiles-column", help="Column of a .csv or .tsv that holds the SMILES.  [default: found by name]")
def main(model, source, out, keep_columns, views, embeddings, html, resume, part, batch, provider, workers, smiles_column):
    """Predict the molecules of SOURCE with MODEL, an .onnx file that export.py wrote.

    SOURCE: .smi, .txt, .csv, .tsv, gzipped or not, - for standard input; a .png or .jpg of a molecule, or a folder of them.
    """
    loaded, (index, parts) = Model(model, provider), part
    if embeddings and not loaded.width:
        raise click.ClickException(f"{model}: an ensemble has no embedding; export one of its members alone for --embeddings")
    if not loaded.targets and not embeddings:
        raise click.ClickException(f"{model}: an encoder without a head predicts nothing; give --embeddings FILE.npy")
    if source == "-" and (resume or parts > 1):
        raise click.UsageError("--resume and --part need a file: standard input can't be read twice")
    batch = batch or BATCH.get(loaded.device, 64)
    given, columns = Source(source, smiles_column), loaded.columns(views)
    if given.kind == "pictures" and views > 1:
        raise click.ClickException(f"{source}: --views needs SMILES, of which other drawings can be made")
    for font in render.FONTS if views > 1 else ():
        render.font_path(font)
    likeness = ["nearest_training"] if loaded.facts["sketch"] is not None else []
    kept = given.kept({*OWN, *columns}) if keep_columns else {}
    out, embeddings, html = (path and tailed(path, index, parts) for path in (out, embeddings, html))
    for path in filter(None, (out, embeddings, html)):
        render.check_output(path, given.path, model)
        if [out, embeddings, html].count(path) > 1:
            raise click.ClickException(f"{path}: is asked for as two different outputs; give each a name of its own")
    facts = {"model": loaded.sha256, "input": given.sha256, "columns": ["row", "smiles", "name", *kept.values(), *columns, *likeness, "error"],
             "views": views, "part": f"{index}/{parts}", "batch": batch, "embeddings": bool(embeddings), "rdkit": rdBase.rdkitVersion}
    for notice in filter(None, (loaded.notice, loaded.slow())):
        click.echo(notice, err=True)
    output, began = Output(out, embeddings, loaded.width, facts, resume), time.time()
    drawing = {"max_atoms": loaded.facts["render"]["max_atoms"], "r_groups": loaded.facts["render"].get("r_groups", False)}
    options = drawing | {"patch": loaded.patch}
    with tempfile.TemporaryDirectory() as folder, output.guarded(resumable=source != "-"):
        if likeness:
            np.save(Path(folder) / "sketch.npy", loaded.facts["sketch"])
            options["sketch"] = str(Path(folder) / "sketch.npy")
        predict_all(loaded, given, output, kept, views, batch, (index, parts), workers, options)
    predicted, seconds = output.rows - output.failed, time.time() - began
    click.echo(f"{out}: {predicted} molecules predicted on {loaded.device}"
               + (f", {output.failed} rows could not be, see the column error" if output.failed else "") + f" ({seconds:.0f} s)")
    if html:
        title = f"{', '.join(loaded.targets) or 'Molecules'}, predicted for {Path(given.path).name}"
        pictures.write_report(html, out, title, columns[:len(loaded.targets)], given.files if given.kind == "pictures" else None, workers, **drawing)
        click.echo(f"{html}: {html.stat().st_size / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    main()
