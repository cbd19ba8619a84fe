"""Notebooks as files: made from text twins (jupytext), compared by their cells, free of noise.

The twin ``NAME.py`` is the source of truth: ``NAME.ipynb`` is written from it, never the other way.
What was changed in a notebook alone is never written over: see `difference`.
"""
from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import writing

if TYPE_CHECKING:  # jupytext and nbformat are imported where they are used: training does without
    from nbformat import NotebookNode

OURS = ("spatial_circuits", "spatial_circuits_run")  # what a twin declares; what a run leaves
METADATA = {"jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
WIDGETS = "application/vnd.jupyter.widget-state+json"
WIDGET_ID = re.compile(r"[0-9a-f]{32}")
ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]+")
PROGRESS = re.compile(r"\r?[^\r\n]*(?:\d%\||\d+it \[)[^\r\n]*\n?")  # a tqdm bar, with timings
ANSI = re.compile(r"\x1b\[[\d;]*m")
UNRUN = "not-run"  # tag of the cell that says so


def twin(py: Path) -> NotebookNode:
    """Notebook without outputs made from a text twin; the same text gives the same ids."""
    import jupytext
    nb = jupytext.read(py, fmt="py:percent")
    nb.nbformat_minor = 5  # the first with cell ids
    return normalise(nb)


def save_notebook(nb: NotebookNode, path: Path) -> Path:
    """Write a notebook as a whole."""
    import nbformat
    with writing(path) as partial:
        partial.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    return path


def load_notebook(path: Path) -> NotebookNode:
    """Read an .ipynb file."""
    import nbformat
    return nbformat.read(path, as_version=4)


def sources(nb: NotebookNode) -> list:
    """[type, source, tags] of each cell, without the one that papermill injects."""
    cells = [[c.cell_type, c.source.rstrip(), sorted(c.metadata.get("tags", []))] for c in nb.cells]
    return [cell for cell in cells if "injected-parameters" not in cell[2]]


def source_hash(nb: NotebookNode) -> str:
    """sha256 of the cells' types, sources and tags."""
    return hashlib.sha256(json.dumps(sources(nb)).encode()).hexdigest()


def edited(nb: NotebookNode) -> bool:
    """Whether cells were changed, added or removed since the notebook was written from a twin."""
    return _made_by(nb) != source_hash(nb)


def difference(py: Path, ipynb: Path) -> str | None:
    """How a notebook and its twin differ, which one is newer and what to do; None if they hold the
    same cells. File times do not count."""
    run = f"`spatial-circuits run-book --in-place {py.stem}`"
    if not ipynb.exists():
        return f"{ipynb.name} does not exist; {run} makes it"
    nb, made_of = load_notebook(ipynb), source_hash(twin(py))
    if source_hash(nb) == made_of:
        return None
    differ = f"{ipynb.name} does not hold the cells of {py.name}; "
    if not edited(nb):
        return f"{differ}{py.name} is newer; {run} brings it over"
    if _made_by(nb) == made_of:
        return (f"{differ}{ipynb.name} is newer; `jupytext --to py:percent {ipynb}` brings it over "
                f"(or delete it)")
    show = f"`jupytext --to py:percent -o - {ipynb} | diff {py} -`"
    return (f"{differ}both were changed, as {show} shows; make {py.name} "
            f"hold what you want to keep, then delete {ipynb.name}")


def current(nb: NotebookNode, py: Path, parameters: dict) -> bool:
    """Whether the outputs are those of the twin's cells with these parameters."""
    told = nb.metadata.get("spatial_circuits_run", {}).get("parameters")
    return sources(nb) == sources(twin(py)) and not stale(nb) and told == parameters


def mark_unrun(nb: NotebookNode, parameters: dict) -> NotebookNode:
    """Say below the title that the page was not run, or not with these cells and parameters."""
    from nbformat.v4 import new_markdown_cell
    wanted = ", ".join(f"{key}={value}" for key, value in sorted(parameters.items()))
    text = f"with {wanted}" if wanted else "since its cells were changed"
    cell = new_markdown_cell(f"> **Not run {text}.** What this page shows is of another run.")
    cell.metadata["tags"] = [UNRUN]
    cells = [c for c in nb.cells if UNRUN not in c.metadata.get("tags", [])]
    nb.cells = [*cells[:1], cell, *cells[1:]]
    return nb


def _made_by(nb: NotebookNode) -> str | None:
    return nb.metadata.get("spatial_circuits_run", {}).get("source_sha256")


def failed_cell(nb: NotebookNode) -> tuple[NotebookNode, NotebookNode] | None:
    """The cell that raised and its error output; a cell tagged ``raises-exception`` is meant to."""
    for cell in nb.cells:
        meant = "raises-exception" in cell.metadata.get("tags", [])
        for output in cell.get("outputs", []):
            if output.output_type == "error" and not meant:
                return cell, output
    return None


def stale(nb: NotebookNode) -> bool:
    """Whether a cell was not run or failed, or the outputs are those of other cells."""
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    unrun = any(cell.execution_count is None for cell in code)
    return unrun or failed_cell(nb) is not None or edited(nb)


def normalise(nb: NotebookNode) -> NotebookNode:
    """Strip what changes from run to run: timings, ids, versions, progress bars, addresses."""
    from nbformat import NotebookNode
    kept = {key: nb.metadata[key] for key in (*OURS, "widgets") if key in nb.metadata}
    nb.metadata = NotebookNode({**METADATA, **kept})
    seen: dict[str, int] = {}
    for cell in nb.cells:
        seen[cell.source] = seen.get(cell.source, 0) + 1
        cell.id = hashlib.sha256(f"{seen[cell.source]} {cell.source}".encode()).hexdigest()[:12]
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=sorted(tags)) if tags else NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = _steady(cell.outputs)
    return _number_widgets(nb)


def number_figures(nb: NotebookNode, name: str) -> NotebookNode:
    """Number the captioned figures: Figure 7.2, with the anchor figure-2, is the second of a page
    named 07_..."""
    digits = re.match(r"\d+", name)
    chapter = f"{int(digits[0])}." if digits else ""
    outputs = (output for cell in nb.cells for output in cell.get("outputs", []))
    count = 0
    for output in outputs:
        html = str(output.get("data", {}).get("text/html", ""))
        if "<figcaption" not in html:
            continue
        count += 1
        html = re.sub(r'<span class="number">.*?</span> ', "", html)
        html = re.sub(r"<figure[^>]*>", f'<figure id="figure-{count}">', html, count=1)
        said = f'<figcaption><span class="number">Figure {chapter}{count}.</span> '
        output.data["text/html"] = said.join(html.rsplit("<figcaption>", 1))
    return nb


def _steady(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs with streams joined (their chunks depend on timing), without bars and addresses."""
    kept: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        if output.output_type != "stream":
            kept, streams = [*kept, output], {}
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            kept, streams[output.name] = [*kept, output], output
    for output in kept:
        if output.output_type == "stream":
            output.text = ADDRESS.sub("0x...", PROGRESS.sub("", output.text))
        elif "text/plain" in output.get("data", {}):
            output.data["text/plain"] = ADDRESS.sub("0x...", output.data["text/plain"])
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def _number_widgets(nb: NotebookNode) -> NotebookNode:
    """Keep the state of displayed widgets only, under ids that count them as they appear."""
    import nbformat
    widgets = nb.metadata.pop("widgets", {}).get(WIDGETS, {})
    state, queue = widgets.get("state", {}), WIDGET_ID.findall(json.dumps(nb.cells))
    order: dict[str, str] = {}
    while queue:
        key = queue.pop(0)
        if key in state and key not in order:
            order[key] = f"{len(order):032x}"
            queue += WIDGET_ID.findall(json.dumps(state[key], sort_keys=True))
    if order:
        shown = {key: state[key] for key in order}
        nb.metadata["widgets"] = {WIDGETS: {**widgets, "state": shown}}
    text = WIDGET_ID.sub(lambda match: order.get(match[0], match[0]), json.dumps(nb))
    return nbformat.from_dict(json.loads(text))


def failure_report(notebook: Path, partial: Path) -> str:
    """What failed in a run of `notebook`: cell and traceback, or the end of the log beside it."""
    failed = failed_cell(load_notebook(partial)) if partial.exists() else None
    if failed is None:  # the kernel died, or papermill could not start it
        log = notebook.with_suffix(".log").read_text(errors="replace")
        return f"notebook {notebook.stem} stopped:\n{log[-3000:]}"
    cell, error = failed
    traceback = ANSI.sub("", "\n".join(error.traceback))
    return (f"notebook {notebook.stem} failed in this cell:\n\n{cell.source}\n\n{traceback}\n\n"
            f"Kept: {partial}")
