"""Run the book: text twins -> notebooks -> papermill, several at a time, the longest first.

A twin's header may name notebooks that must run before it: ``jupyter: {spatial_circuits: {needs:
[other]}}``. Parameters live in the cell tagged ``parameters``, one annotated assignment a line; a
comment may list the allowed values: ``scale: str = "full"  # smoke | full``.
"""
from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .execute import drop_unused, start, stop
from .notebooks import (
    current,
    difference,
    edited,
    failure_report,
    load_notebook,
    mark_unrun,
    normalise,
    number_figures,
    save_notebook,
    source_hash,
    stale,
    twin,
)
from .progress import Progress, read_durations

TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,),
                                      "bool": (bool,)}
CHOICES = re.compile(r"[\w.-]+(?: \| [\w.-]+)+")
RECORDS = "records"  # folder of the chapters' slow results, beside the twins
DURATIONS = "durations.json"  # in _build by what ran here; beside the twins by `--in-place`


class NotebookError(RuntimeError):
    """A notebook failed or is out of date; the message holds its name, cell and traceback."""


def root(book_dir: Path) -> Path:
    """Folder with the book's _toc.yml: ``book_dir`` or its parent; ValueError if neither."""
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
        return [file for key, part in pairs
                for file in ([part] if key in ("root", "file") else files(part))]
    import yaml
    top = root(book_dir)
    listed = [top / file for file in files(yaml.safe_load((top / "_toc.yml").read_text()))]
    return [file.stem for file in listed if file.parent == book_dir]


def pages(book_dir: Path, names: list[str] | None = None) -> list[str]:
    """Pages that have a text twin, in the order of _toc.yml. ValueError for any other name."""
    known = [name for name in toc(book_dir) if (book_dir / f"{name}.py").exists()]
    for name in names or []:
        if name not in known:
            raise ValueError(f"no notebook {name!r} in {book_dir}; allowed: {', '.join(known)}")
    return [name for name in known if names is None or name in names]


def pair(book_dir: Path | str) -> list[Path]:
    """Rewrite, without outputs, each notebook whose cells differ from its twin's; the others stay.

    ValueError, before any is written, if cells were changed in a notebook and not in its twin.
    """
    book_dir = Path(book_dir).resolve()
    _refuse_edited(book_dir, pages(book_dir))
    files = [(book_dir / f"{name}.py", book_dir / f"{name}.ipynb") for name in pages(book_dir)]
    written = []
    for py, ipynb in files:
        if difference(py, ipynb):
            nb = twin(py)
            nb.metadata["spatial_circuits_run"] = {"source_sha256": source_hash(nb)}
            written.append(save_notebook(nb, ipynb))
    return written


def _refuse_edited(book_dir: Path, names: list[str]) -> None:
    for name in names:
        py, ipynb = book_dir / f"{name}.py", book_dir / f"{name}.ipynb"
        if ipynb.exists() and edited(load_notebook(ipynb)) and (said := difference(py, ipynb)):
            raise ValueError(f"{name}: {said}")


def check_book(book_dir: Path, names: list[str]) -> list[Path]:
    """NotebookError if a notebook differs from its twin or its outputs are missing or stale."""
    for name in names:
        py, ipynb = book_dir / f"{name}.py", book_dir / f"{name}.ipynb"
        if said := difference(py, ipynb):
            raise NotebookError(f"{name}: {said}")
        if stale(load_notebook(ipynb)):
            raise NotebookError(f"{name}: outputs in {ipynb.name} are missing or stale; run "
                                f"`spatial-circuits run-book --in-place {name}`")
    return [book_dir / f"{name}.ipynb" for name in names]


def build_pages(folder: Path | str) -> Path:
    """Build the Jupyter Book of a folder, where a warning is an error; returns its first page.

    The pages go to _build/html in the folder; those of TOP/_build/book to TOP/_build/html.
    """
    site = root(Path(folder).resolve())
    out = site.parents[1] if site.parts[-2:] == ("_build", "book") else site
    program = Path(sys.executable).with_name("jupyter-book")
    subprocess.run([str(program), "build", str(site), "--path-output", str(out), "-W", "-n",
                    "--keep-going"], check=True)
    return out / "_build" / "html" / "index.html"


def check_parameters(notebooks: dict[str, Path], parameters: dict) -> dict[str, dict]:
    """The parameters each notebook takes, {notebook: {parameter: value}}: those it declares.

    A whole number for a float becomes one. ValueError if no notebook declares a parameter, or a
    value has another type than the annotation or is not among the listed choices.
    """
    declared = {name: _declared(path) for name, path in notebooks.items()}
    allowed = sorted({parameter for cell in declared.values() for parameter in cell}) or ["none"]
    taken: dict[str, dict] = {name: {} for name in notebooks}
    for parameter, value in parameters.items():
        if parameter not in allowed:
            raise ValueError(f"unknown parameter {parameter}={value!r}; "
                             f"allowed: {', '.join(allowed)}")
        for name, cell in declared.items():
            if parameter not in cell:
                continue
            expected = _expected(value, cell[parameter])
            if expected:
                raise ValueError(f"parameter {parameter}={value!r} in notebook {name}: "
                                 f"expected {expected}")
            real = cell[parameter]["inferred_type_name"] == "float"
            taken[name][parameter] = float(value) if real else value
    return taken


def _declared(notebook: Path) -> dict[str, dict]:
    import papermill
    return papermill.inspect_notebook(str(notebook))


def _expected(value, declaration: dict) -> str | None:
    """None if ``value`` fits its annotation and listed choices, else what was expected."""
    kind, comment = declaration["inferred_type_name"], declaration["help"].strip()
    truth = isinstance(value, bool) and kind != "bool"
    if kind in TYPES and (truth or not isinstance(value, TYPES[kind])):
        return kind
    if CHOICES.fullmatch(comment) and str(value) not in comment.split(" | "):
        return f"one of {comment.replace(' | ', ', ')}"
    return None


def run_book(book_dir: Path | str, out_dir: Path | str | None = None,
             names: list[str] | None = None, parameters: dict | None = None, jobs: int = 2,
             scale: str | None = None, check: bool = False, in_place: bool = False) -> list[Path]:
    """Run notebooks, ``jobs`` at a time, and write them with their outputs.

    They go into a folder of their own that ``build_pages`` can build: ``out_dir``, or _build/book,
    or with parameters (``scale`` is one) _build/variants/NAME=VALUE. There a page that was not run
    with these cells and parameters says so. ``in_place`` refreshes the notebooks beside the
    twins. ``check`` runs nothing and raises if one of these differs from its twin or is stale.

    Raises ValueError for an unknown name or parameter, a folder of something else, or cells that
    are in a notebook alone, before anything runs; and NotebookError at the first failure: what that
    notebook had done stays in NAME.partial.ipynb. An interruption leaves no partial file.
    """
    book_dir = Path(book_dir).resolve()
    chosen = pages(book_dir, names)
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: expected 1 or more")
    if check:
        return check_book(book_dir, chosen)
    parameters = {**(parameters or {}), **({} if scale is None else {"scale": scale})}
    top = root(book_dir)
    out = _out(top, out_dir, parameters, in_place)
    _refuse_edited(book_dir, chosen)
    with tempfile.TemporaryDirectory() as scratch:
        notebooks = {name: Path(scratch, f"{name}.ipynb") for name in chosen}
        for name, path in notebooks.items():
            save_notebook(twin(book_dir / f"{name}.py"), path)
        values = check_parameters(notebooks, parameters)
        target = out / book_dir.relative_to(top)
        if out != top:
            _prepare(book_dir, target, out, parameters, chosen)
        files = (book_dir / DURATIONS, top / "_build" / DURATIONS)
        size = str(parameters.get("scale", "full"))
        progress = Progress(chosen, read_durations(*files).get(size, {}), jobs)
        try:
            _run(notebooks, values, target, book_dir, progress, in_place)
        finally:
            progress.close(files[0] if in_place else files[1], size)
    return [target / f"{name}.ipynb" for name in chosen]


def _out(top: Path, out_dir: Path | str | None, parameters: dict, in_place: bool) -> Path:
    """The folder of the run; a folder that holds anything but a book that was run is refused."""
    if in_place and (out_dir or parameters) or out_dir and Path(out_dir).resolve() == top:
        raise ValueError(f"a run in place has no parameters and no folder; out={out_dir}, "
                         f"parameters {parameters}: it needs a folder of its own")
    if in_place:
        return top
    pairs = ",".join(f"{key}={value}" for key, value in sorted(parameters.items()))
    slug = re.sub(r"[^\w.=,-]+", "_", pairs)
    folder = "_build/book" if not parameters else f"_build/variants/{slug}"
    out = Path(out_dir or top / folder).resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the name of a folder")
    ours = (out / ".run-book").exists() or top / "_build" in out.parents
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise ValueError(f"{out} holds files of something else; choose a new or an empty folder")
    return out


def _prepare(book_dir: Path, target: Path, out: Path, parameters: dict, chosen: list[str]) -> None:
    """The book's configuration and other files; and the pages not to be run, which say so."""
    target.mkdir(parents=True, exist_ok=True)
    (out / ".run-book").touch()
    skip = ["*.py", "*.toml", "*.ipynb", ".*", "_build", "__pycache__", DURATIONS, RECORDS]
    shutil.copytree(book_dir, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*skip))
    for file in root(book_dir).glob("_*.yml"):
        shutil.copy(file, out)
    if (root(book_dir) / "_static").is_dir():
        shutil.copytree(root(book_dir) / "_static", out / "_static", dirs_exist_ok=True)
    for name in pages(book_dir):
        py, there = book_dir / f"{name}.py", target / f"{name}.ipynb"
        ours = book_dir / f"{name}.ipynb"
        if name in chosen and not there.exists():
            continue
        source = there if there.exists() else ours
        nb = load_notebook(source) if source.exists() else twin(py)
        taken = {key: value for key, value in parameters.items()
                 if source.exists() and key in _declared(source)}
        save_notebook(nb if current(nb, py, taken) else mark_unrun(nb, parameters), there)


def _run(notebooks: dict[str, Path], values: dict[str, dict], target: Path, cwd: Path,
         progress: Progress, keep: bool) -> None:
    """Start a notebook once those it needs are done and a slot is free; stop all at a failure.
    keep: as of `execute.start`; records that no cell used are then dropped."""
    began = time.time()
    needs = {name: set(load_notebook(path).metadata.get("spatial_circuits", {}).get("needs", []))
             & set(notebooks) for name, path in notebooks.items()}
    waiting = sorted(notebooks, key=progress.expected.__getitem__, reverse=True)
    partials = {name: target / f"{name}.partial.ipynb" for name in notebooks}
    running: dict[str, subprocess.Popen] = {}
    try:
        while waiting or running:
            ready = [name for name in waiting if needs[name] <= set(progress.taken)]
            if not ready and not running:
                raise ValueError(f"notebooks that need one another: {', '.join(waiting)}")
            for name in ready[:progress.jobs - len(running)]:
                waiting.remove(name)
                partials[name].unlink(missing_ok=True)
                running[name] = start(notebooks[name], partials[name], values[name], cwd,
                                      progress.jobs, keep)
                progress.start(name)
            for name in [n for n, process in running.items() if process.poll() is not None]:
                _finish(notebooks[name], values[name], partials[name], running.pop(name).returncode)
                progress.finish(name)
                if keep:
                    drop_unused(cwd / RECORDS / name, began)
            progress.show()
            time.sleep(0.1)
    finally:
        stop(list(running.values()))
        for name in running:
            partials[name].unlink(missing_ok=True)


def _finish(notebook: Path, values: dict, partial: Path, code: int) -> None:
    """Turn the partial output into the notebook, or raise NotebookError."""
    if code:
        raise NotebookError(failure_report(notebook, partial))
    nb = load_notebook(partial)
    nb.metadata["spatial_circuits_run"] = {"source_sha256": source_hash(nb), "parameters": values}
    nb = number_figures(normalise(nb), notebook.stem)
    save_notebook(nb, partial.with_name(f"{notebook.stem}.ipynb"))
    partial.unlink()
