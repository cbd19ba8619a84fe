"""Site: a Sphinx extension that lets the built book do without any other host.

MathJax is copied into the site from the package sphinx-mathjax-offline, of which only the files used here are taken, and
the live-code scripts that Jupyter Book adds to every page (Thebe, fetched from a CDN, unused here) are left out. Entries of
the bibliography can be linked from any page as ``bibliography.md#KEY``, which is a plain link in JupyterLab too.
"""
import shutil
from importlib.util import find_spec
from pathlib import Path

MATHJAX = ("tex-chtml.js", "output/chtml", "input/tex/extensions")


def copy_mathjax(app, error: Exception | None) -> None:
    """After an HTML build: MathJax into _static/mathjax. Raises ModuleNotFoundError naming the package if it is missing."""
    if error is not None or app.builder.format != "html":
        return
    found = find_spec("sphinx-mathjax-offline")
    if found is None:
        raise ModuleNotFoundError("the book needs the package sphinx-mathjax-offline (pip install it)")
    source, target = Path(found.origin).parent / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, target / part)


def tidy(app, page: str, template: str, context: dict, doctree) -> None:
    """Take Thebe's scripts and styles out of a page, and a list role that a bibliography's entries contradict."""
    for key in ("script_files", "css_files"):
        context[key] = [f for f in context.get(key, []) if "thebe" not in f"{getattr(f, 'filename', f)} {getattr(f, 'attributes', '')}".lower()]
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def name_entries(app, env) -> None:
    """Make each BibTeX key an anchor that Markdown links can be checked against; an unknown key is a warning."""
    keys = env.get_domain("cite").bibdata.data.entries
    for page in (page for page in env.found_docs if page.endswith("bibliography")):
        env.metadata[page].setdefault("myst_slugs", {}).update({key: (0, key, key) for key in keys})


def setup(app) -> dict:
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("html-page-context", tidy, priority=900)
    app.connect("env-updated", name_entries)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
