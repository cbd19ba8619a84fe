"""Site: a Sphinx extension that lets the built book do without any other host.

MathJax is copied into the site from the package sphinx-mathjax-offline, of which only the files
used here are taken, and the live-code scripts that Jupyter Book adds to every page (Thebe, fetched
from a CDN, unused here) are left out. Entries of the bibliography can be linked from any page as
``bibliography.md#KEY``, which is a plain link in JupyterLab too. Code that a reader does not need
is folded (`folding`). The docstrings of the reference (sphinx.ext.autodoc) are read as the plain
text they are. The models that run in a page (`live`) are written into _static/live; where they
cannot be made, the page says why.
"""
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from .folding import fold

MATHJAX = ("tex-chtml.js", "output/chtml", "input/tex/extensions")


def copy_mathjax(app, error: Exception | None) -> None:
    """After an HTML build: MathJax into _static/mathjax. ModuleNotFoundError if it is missing."""
    if error is not None or app.builder.format != "html":
        return
    found = find_spec("sphinx-mathjax-offline")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the book needs sphinx-mathjax-offline (pip install it)")
    source = Path(found.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, target / part)


def write_models(app, error: Exception | None) -> None:
    """After an HTML build: what live figures load into _static/live, or the reason for its lack.

    In a process of its own, since autodoc changes the defaults of the functions that it documents.
    """
    if error is not None or app.builder.format != "html":
        return
    from ..live.bundle import write_absence
    folder = Path(app.outdir) / "_static" / "live"
    command = [sys.executable, "-m", "spatial_circuits.cli", "live", "--out", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        reason = (made.stderr.strip() or "no reason was given").splitlines()[-1]
        write_absence(folder, reason.removeprefix("spatial-circuits: "))
        print(f"live models are not built: {reason}")


def as_rst(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: escape what reStructuredText would read as markup, keep tables as
    they stand, and give each module a heading."""
    blocks = "\n".join(lines).strip().split("\n\n")
    said = [_literal(block) if re.search(r"^ |\S {2,}\S", block, re.M) else _escaped(block)
            for block in blocks]
    if what == "module":
        said.insert(0, f".. rubric:: {name.removeprefix('spatial_circuits.')}")
    lines[:] = "\n\n".join(said).split("\n") + [""]


def as_signature(app, what, name, obj, options, signature: str | None, returns: str | None):
    """A field made by a factory has no default that could be read back."""
    return (signature or "").replace("<factory>", "..."), returns


def _literal(block: str) -> str:
    return "::\n\n" + "\n".join(f"   {line}" for line in block.split("\n"))


def _escaped(block: str) -> str:
    parts = re.split(r"`+([^`]+)`+", block)  # code stands at the odd places
    parts[::2] = [re.sub(r"([\\*_|<>`])", r"\\\1", text) for text in parts[::2]]
    parts[1::2] = [f"``{code}``" for code in parts[1::2]]
    return "\\ ".join(part for part in parts if part)


def tidy(app, page: str, template: str, context: dict, doctree) -> None:
    """Take out Thebe's scripts and styles, and a role that a list of works contradicts."""
    for key in ("script_files", "css_files"):
        context[key] = [file for file in context.get(key, []) if "thebe" not in _named(file)]
    if "body" in context:
        listed = '<div role="list" class="citation-list">'
        context["body"] = context["body"].replace(listed, '<div class="citation-list">')


def _named(file) -> str:
    return f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', '')}".lower()


def drop_launch_buttons(app, config) -> None:
    """No buttons that open a page elsewhere while _config.yml does not say where the copy is."""
    options = config.html_theme_options
    if "/OWNER/" in options.get("repository_url", ""):
        options["launch_buttons"] = {}


def name_entries(app, env) -> None:
    """Make each BibTeX key an anchor that links are checked against: an unknown one warns."""
    keys = env.get_domain("cite").bibdata.data.entries
    anchors = {key: (0, key, key) for key in keys}
    for page in env.found_docs:
        if page.endswith("bibliography"):
            env.metadata[page].setdefault("myst_slugs", {}).update(anchors)


def setup(app) -> dict:
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("config-inited", drop_launch_buttons)
    app.connect("source-read", fold)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-signature", as_signature)
    app.connect("html-page-context", tidy, priority=900)
    app.connect("env-updated", name_entries)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", write_models)
    # A higher env_version has pages that were built before read anew.
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
