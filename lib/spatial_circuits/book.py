"""Run the book: text twins -> notebooks -> papermill, in the order of _toc.yml, several at a time.

A twin's header may name notebooks that must run before it: ``jupyter: {spatial_circuits: {needs: [other]}}``.
Parameters live in the cell tagged ``parameters``, one annotated assignment a line; a comment may list the
allowed values: ``scale: str = "full"  # smoke | full``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from .notebooks import failed_cell, in_sync, load, normalise, number_figures, save, source_hash, stale, twin

TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool}
CHOICES = re.compile(r"[\w.-]+(?: \| [\w.-]+)+")
ANSI = re.compile(r"\x1b\[[\d;]*m")


class NotebookError(RuntimeError):
    """A notebook failed or is out of date; the message names it and holds the failing cell and traceback."""


# The pages of a book

def root(book_dir: Path) -> Path:
    """Folder with the book's _toc.yml: ``book_dir`` or its parent. ValueError if neither has one."""
    for folder in (book_dir, book_dir.parent):
        if (folder / "_toc.yml").exists():
            return folder
    raise ValueError(f"no _toc.yml in {book_dir} or in its parent")


def toc(book_dir: Path) -> list[str]:
    """Names (stems) of the pages in ``book_dir``, in the order of _toc.yml."""
    def files(node):
        if isinstance(node, list):
            return [file for part in node for file in files(part)]
        pairs = node.items() if isinstance(node, dict) else ()
        return [file for key, part in pairs for file in ([part] if key in ("root", "file") else files(part))]
    import yaml
    top = root(book_dir)
    listed = [top / file for file in files(yaml.safe_load((top / "_toc.yml").read_text()))]
    return [file.stem for file in listed if file.parent == book_dir]


def pages(book_dir: Path, names: list[str] | None = None) -> list[str]:
    """Pages that have a text twin, in the order of _toc.yml. ValueError for a name that is none of them."""
    known = [name for name in toc(book_dir) if (book_dir / f"{name}.py").exists()]
    for name in names or []:
        if name not in known:
            raise ValueError(f"no notebook {name!r} in {book_dir}; allowed: {', '.join(known)}")
    return [name for name in known if names is None or name in names]


def pair(book_dir: Path | str) -> list[Path]:
    """Rewrite, without outputs, each notebook whose cells differ from its twin's; the others stay."""
    book_dir = Path(book_dir).resolve()
    files = [(book_dir / f"{name}.py", book_dir / f"{name}.ipynb") for name in pages(book_dir)]
    return [save(twin(py), ipynb) for py, ipynb in files if not in_sync(py, ipynb)]


def check_book(book_dir: Path, names: list[str]) -> list[Path]:
    """NotebookError if a notebook differs from its text twin or its outputs are missing or stale."""
    for name in names:
        py, ipynb = book_dir / f"{name}.py", book_dir / f"{name}.ipynb"
        if not in_sync(py, ipynb):
            raise NotebookError(f"{name}: {ipynb.name} does not hold the cells of {py.name}; run the book")
        if stale(load(ipynb)):
            raise NotebookError(f"{name}: outputs in {ipynb.name} are missing or stale; run the book")
    return [book_dir / f"{name}.ipynb" for name in names]


def render(folder: Path | str) -> Path:
    """Build the Jupyter Book in ``folder``, where a warning is an error; returns its first page."""
    program = Path(sys.executable).with_name("jupyter-book")
    subprocess.run([str(program), "build", str(folder), "-W", "-n", "--keep-going"], check=True)
    return Path(folder) / "_build" / "html" / "index.html"


# Parameters

def parse_parameters(pairs: list[str]) -> dict:
    """``["seed=3", "model=rte"]`` -> ``{"seed": 3, "model": "rte"}``; ValueError unless NAME=VALUE.

    Values are JSON where they can be read so, else text.
    """
    def value(text):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    for text in pairs:
        if not re.match(r"[A-Za-z_][\w.]*=", text):
            raise ValueError(f"parameter {text!r} is not of the form NAME=VALUE")
    return {name: value(text) for name, text in (text.split("=", 1) for text in pairs)}


def check_parameters(notebooks: dict[str, Path], parameters: dict) -> dict[str, dict]:
    """The parameters each notebook takes, ``{notebook: {parameter: value}}``, those that it declares.

    ValueError if no notebook declares a parameter, or a value has another type than the annotation or is not
    among the listed choices.
    """
    import papermill
    declared = {name: papermill.inspect_notebook(str(path)) for name, path in notebooks.items()}
    allowed = sorted({parameter for cell in declared.values() for parameter in cell}) or ["none"]
    for parameter, value in parameters.items():
        if parameter not in allowed:
            raise ValueError(f"unknown parameter {parameter}={value!r}; allowed: {', '.join(allowed)}")
        for name, cell in declared.items():
            expected = _expected(value, cell[parameter]) if parameter in cell else None
            if expected:
                raise ValueError(f"parameter {parameter}={value!r} in notebook {name}: expected {expected}")
    return {name: {key: value for key, value in parameters.items() if key in cell}
            for name, cell in declared.items()}


def _expected(value, declaration: dict) -> str | None:
    """None if ``value`` fits its annotation and listed choices, else what was expected."""
    kind, comment = declaration["inferred_type_name"], declaration["help"].strip()
    if kind in TYPES and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "bool")):
        return kind
    if CHOICES.fullmatch(comment) and str(value) not in comment.split(" | "):
        return f"one of {comment.replace(' | ', ', ')}"
    return None


# Running

def run_book(book_dir: Path | str, out_dir: Path | str | None = None, names: list[str] | None = None,
             parameters: dict | None = None, jobs: int = 2, scale: str | None = None,
             check: bool = False) -> list[Path]:
    """Run notebooks in the order of _toc.yml, ``jobs`` at a time, and write them with their outputs.

    Without parameters they are written beside their twins. With parameters (``scale`` is one) the book goes
    into a folder of its own that ``render`` can build: ``out_dir``, or _build/variants/NAME=VALUE. ``check``
    runs nothing and raises if a notebook differs from its twin or holds stale outputs.

    Raises ValueError for an unknown name or parameter before anything runs, and NotebookError at the first
    failure; what that notebook had done stays beside it in NAME.partial.ipynb.
    """
    book_dir = Path(book_dir).resolve()
    chosen = pages(book_dir, names)
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: expected 1 or more")
    if check:
        return check_book(book_dir, chosen)
    parameters = {**(parameters or {}), **({} if scale is None else {"scale": scale})}
    with tempfile.TemporaryDirectory() as scratch:
        notebooks = {name: Path(scratch, f"{name}.ipynb") for name in chosen}
        for name, path in notebooks.items():
            save(twin(book_dir / f"{name}.py"), path)
        values = check_parameters(notebooks, parameters)
        target = _target(book_dir, out_dir, parameters, whole=names is None)
        _run(notebooks, values, target, book_dir, jobs)
    return [target / f"{name}.ipynb" for name in chosen]


def _target(book_dir: Path, out_dir: Path | str | None, parameters: dict, whole: bool) -> Path:
    """Folder for the notebooks; any but ``book_dir`` first gets the book's configuration and other files."""
    top = root(book_dir)
    slug = re.sub(r"[^\w.=,-]+", "_", ",".join(f"{key}={value}" for key, value in sorted(parameters.items())))
    out = Path(out_dir or (top / "_build" / "variants" / slug if parameters else top)).resolve()
    if out == top and parameters:
        raise ValueError(f"out_dir={out}: a book with parameters needs a folder of its own")
    target = out / book_dir.relative_to(top)
    if out != top:
        skip = ["*.py", "*.toml", "*.partial.ipynb", ".*", "_build", "__pycache__"] + ["*.ipynb"] * whole
        shutil.copytree(book_dir, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*skip))
        for file in top.glob("_*.yml"):
            shutil.copy(file, out)
        if (top / "_static").is_dir():
            shutil.copytree(top / "_static", out / "_static", dirs_exist_ok=True)
    return target


def _run(notebooks: dict[str, Path], values: dict[str, dict], target: Path, cwd: Path, jobs: int) -> None:
    """Start a notebook once those it needs are done and a slot is free; stop all at the first failure."""
    needs = {name: set(load(path).metadata.get("spatial_circuits", {}).get("needs", [])) & set(notebooks)
             for name, path in notebooks.items()}
    waiting, running, done = list(notebooks), {}, set()
    with tqdm(total=len(waiting), unit="notebook") as bar:
        try:
            while waiting or running:
                ready = [name for name in waiting if needs[name] <= done][:jobs - len(running)]
                if not ready and not running:
                    raise ValueError(f"notebooks that need one another: {', '.join(waiting)}")
                for name in ready:
                    waiting.remove(name)
                    running[name] = _start(notebooks[name], values[name], target, cwd, jobs)
                    bar.set_description(", ".join(running))
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    _finish(notebooks[name], values[name], target, running.pop(name).returncode)
                    done.add(name)
                    bar.update()
                time.sleep(0.1)
        finally:
            for process in running.values():
                process.terminate()
                process.wait()


def environment(jobs: int = 1) -> dict[str, str]:
    """Environment of a notebook's process: this interpreter's kernel, inline figures, some of the cores."""
    env = {key: value for key, value in os.environ.items() if key not in ("JUPYTER_PATH", "MPLBACKEND")}
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return env | {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONHASHSEED": "0"}


def _start(notebook: Path, values: dict, target: Path, cwd: Path, jobs: int) -> subprocess.Popen:
    """A papermill process for one notebook; it writes NAME.partial.ipynb cell by cell."""
    partial = target / f"{notebook.stem}.partial.ipynb"
    partial.unlink(missing_ok=True)
    command = [sys.executable, "-m", "papermill", str(notebook), str(partial), "--kernel", "python3",
               "--cwd", str(cwd), "--no-progress-bar", "--log-level", "ERROR"]
    if values:
        command += ["-y", json.dumps(values)]
    with notebook.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, env=environment(jobs), stdout=log, stderr=log)


def _finish(notebook: Path, values: dict, target: Path, code: int) -> None:
    """Turn the partial output into the notebook, or raise NotebookError."""
    partial = target / f"{notebook.stem}.partial.ipynb"
    if code:
        raise NotebookError(_failure(notebook, partial))
    nb = load(partial)
    nb.metadata["spatial_circuits_run"] = {"source_sha256": source_hash(nb), "parameters": values}
    save(number_figures(normalise(nb), notebook.stem), target / f"{notebook.stem}.ipynb")
    partial.unlink()


def _failure(notebook: Path, partial: Path) -> str:
    failed = failed_cell(load(partial)) if partial.exists() else None
    if failed is None:  # the kernel died, or papermill could not start it
        return f"notebook {notebook.stem} stopped:\n{notebook.with_suffix('.log').read_text()[-3000:]}"
    cell, error = failed
    traceback = ANSI.sub("", "\n".join(error.traceback))
    return f"notebook {notebook.stem} failed in this cell:\n\n{cell.source}\n\n{traceback}\n\nKept: {partial}"


# The command

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``spatial-circuits run-book``; its ``run`` returns the exit status."""
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="e.g. 04_training; default all")
    parser.add_argument("--book", default="book", metavar="FOLDER", help="folder of the notebooks")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--model", metavar="NAME", help="short for -p model=...: the whole study of a shipped model or a folder")
    parser.add_argument("--scale", choices=("smoke", "full"), help="short for -p scale=...")
    parser.add_argument("--out", metavar="FOLDER", help="default for variants: _build/variants")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks that run at a time")
    parser.add_argument("--check", action="store_true", help="run nothing; are the outputs current?")
    parser.add_argument("--render", action="store_true", help="build the HTML pages afterwards")
    parser.set_defaults(run=_command)


def _command(options: argparse.Namespace) -> int:
    parameters = parse_parameters(options.parameter)
    if options.model is not None:
        from .pretrained import find, names
        folder = find(options.model).resolve()  # notebooks run in another folder
        parameters["model"] = options.model if options.model in names() else str(folder)
    try:
        written = run_book(options.book, options.out, options.names or None, parameters, options.jobs, options.scale, options.check)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    print("current:" if options.check else "wrote", *written, sep="\n  ")
    if options.render and written:
        print(f"open {render(root(written[0].parent))}")
    return 0
