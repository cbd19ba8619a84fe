"""Notebooks as files: made from text twins (jupytext py:percent), compared by their cells, free of noise.

The twin ``NAME.py`` is the source of truth: ``NAME.ipynb`` is written from it, never the other way round.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # jupytext and nbformat are imported where they are used: training does without them
    from nbformat import NotebookNode

OURS = ("spatial_circuits", "spatial_circuits_run")  # what a twin's header declares; what a run leaves behind
METADATA = {"jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
WIDGETS = "application/vnd.jupyter.widget-state+json"
WIDGET_ID = re.compile(r"[0-9a-f]{32}")
ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]+")
PROGRESS = re.compile(r"\r?[^\r\n]*(?:\d%\||\d+it \[)[^\r\n]*\n?")  # a tqdm bar: its timings vary


def twin(py: Path) -> NotebookNode:
    """Notebook without outputs made from a text twin; the same text gives the same ids and metadata."""
    import jupytext
    nb = jupytext.read(py, fmt="py:percent")
    nb.nbformat_minor = 5  # the first with cell ids
    return normalise(nb)


def save(nb: NotebookNode, path: Path) -> Path:
    """Write a notebook atomically."""
    import nbformat
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def load(path: Path) -> NotebookNode:
    """Read an .ipynb file."""
    import nbformat
    return nbformat.read(path, as_version=4)


# Is a notebook what its twin says, and are its outputs those of its cells?

def sources(nb: NotebookNode) -> list:
    """[type, source, tags] of each cell, without the one that papermill injects."""
    cells = [[c.cell_type, c.source.rstrip(), sorted(c.metadata.get("tags", []))] for c in nb.cells]
    return [cell for cell in cells if "injected-parameters" not in cell[2]]


def source_hash(nb: NotebookNode) -> str:
    """sha256 of the cells' types, sources and tags."""
    return hashlib.sha256(json.dumps(sources(nb)).encode()).hexdigest()


def in_sync(py: Path, ipynb: Path) -> bool:
    """Whether a text twin and its notebook hold the same cells. Sources are compared, never file times."""
    return Path(ipynb).exists() and sources(twin(py)) == sources(load(ipynb))


def failed_cell(nb: NotebookNode) -> tuple[NotebookNode, NotebookNode] | None:
    """The cell that raised and its error output; a cell tagged ``raises-exception`` is meant to."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
                return cell, output
    return None


def stale(nb: NotebookNode) -> bool:
    """Whether a cell was not run or failed, or the outputs were made by other cells than the notebook's."""
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    unrun = any(cell.execution_count is None for cell in code)
    made_by = nb.metadata.get("spatial_circuits_run", {}).get("source_sha256")
    return unrun or failed_cell(nb) is not None or made_by != source_hash(nb)


# Two runs with the same results give equal files

def normalise(nb: NotebookNode) -> NotebookNode:
    """Strip what changes from run to run: timings, random ids, versions, progress bars, memory addresses."""
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
    """Number the captioned figures of a page: Figure 7.2 is the second of a page named 07_..., with the anchor figure-2."""
    digits, count = re.match(r"\d*", name)[0], 0
    for output in (o for cell in nb.cells for o in cell.get("outputs", []) if "<figcaption" in str(o.get("data", {}).get("text/html", ""))):
        html = re.sub(r'<span class="number">.*?</span> ', "", output.data["text/html"])
        count += 1
        said = f'<figcaption><span class="number">Figure {f"{int(digits)}." if digits else ""}{count}.</span> '
        html = re.sub(r"<figure[^>]*>", f'<figure id="figure-{count}">', html, count=1)
        output.data["text/html"] = said.join(html.rsplit("<figcaption>", 1))
    return nb


def _steady(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs with streams joined (their chunks depend on timing), without progress bars and addresses."""
    kept, streams = [], {}
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
    """Keep the state of displayed widgets only, under ids that count them in order of appearance."""
    import nbformat
    widgets = nb.metadata.pop("widgets", {}).get(WIDGETS, {})
    state, order, queue = widgets.get("state", {}), {}, WIDGET_ID.findall(json.dumps(nb.cells))
    while queue:
        key = queue.pop(0)
        if key in state and key not in order:
            order[key] = f"{len(order):032x}"
            queue += WIDGET_ID.findall(json.dumps(state[key], sort_keys=True))
    if order:
        nb.metadata["widgets"] = {WIDGETS: {**widgets, "state": {key: state[key] for key in order}}}
    text = WIDGET_ID.sub(lambda match: order.get(match[0], match[0]), json.dumps(nb))
    return nbformat.from_dict(json.loads(text))
