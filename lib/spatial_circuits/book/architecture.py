"""Architecture: the library's packages as layers, read from its own imports, and their picture.

`python -m spatial_circuits.book.architecture` rewrites the picture in _static. A test compares it
with the code, and holds every import to the direction that LAYERS gives.
"""
import ast
import textwrap
from html import escape
from importlib.util import resolve_name
from pathlib import Path

LIBRARY = Path(__file__).parents[1]
PICTURE = LIBRARY.parents[1] / "_static" / "architecture.svg"
LAYERS = (("files", "caches", "memory", "parameters"), ("data",), ("text",), ("model",),
          ("training", "hooks"), ("analyses",), ("claims",), ("live",), ("book",),
          ("cli",))  # lowest first
_WIDTH, _ROW, _LEFT, _GAP = 900, 97, 20, 14  # px


def depth(package: str) -> int:
    """The layer of a package, from 0. Raises ValueError for one that LAYERS does not hold."""
    for number, layer in enumerate(LAYERS):
        if package in layer:
            return number
    raise ValueError(f"package {package!r} has no layer; put it into LAYERS of {__name__}")


def modules(library: Path = LIBRARY) -> dict[str, Path]:
    """Every module by its dotted name within the library, in alphabetical order."""
    files = sorted(p for p in library.rglob("*.py") if p.name != "__init__.py")
    return {".".join(p.relative_to(library).with_suffix("").parts): p for p in files}


def imports(name: str, source: str) -> set[str]:
    """The packages that a module (dotted name) of this source imports from, wherever it does so."""
    inside = f"spatial_circuits.{name}".rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            target = resolve_name("." * node.level + (node.module or ""), inside)
            found.update(f"{target}.{alias.name}".split(".")[1] for alias in node.names
                         if target.split(".")[0] == "spatial_circuits")
    return found - {name.split(".")[0], "__version__"}


def arrows(library: Path = LIBRARY) -> dict[tuple[str, str], int]:
    """How many modules of one package import from another: {(from, to): count}."""
    counts: dict[tuple[str, str], int] = {}
    for name, path in modules(library).items():
        for target in imports(name, path.read_text()):
            pair = (name.split(".")[0], target)
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def headline(path: Path) -> str:
    """The first sentence of a file's docstring, without its full stop."""
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return " ".join(first.split()).split(". ")[0].rstrip(".")


def svg(library: Path = LIBRARY) -> str:
    """The picture: a box for each package, a line for what it holds, an arrow for its imports."""
    rows = list(reversed(LAYERS))
    boxes, parts = {}, []
    for number, layer in enumerate(rows):
        width = (_WIDTH - 2 * _LEFT - _GAP * (len(layer) - 1)) / len(layer)
        for place, package in enumerate(layer):
            boxes[package] = (_LEFT + place * (width + _GAP), 30 + number * (_ROW + 26), width)
    names: dict[str, list[str]] = {}
    for name in modules(library):
        package, *rest = name.split(".")
        names.setdefault(package, []).extend(rest)
    for package, (x, y, width) in boxes.items():
        file = library / package / "__init__.py"
        file = file if file.exists() else library / f"{package}.py"
        said = headline(file).partition(": ")[2] or headline(file)
        held = textwrap.wrap(" ".join(names.get(package, [])), int((width - 24) / 7.3))
        sentence = textwrap.wrap(said, int((width - 24) / 6.4))
        lines = [("name", package), *(("said", line) for line in sentence),
                 *(("holds", line) for line in held)]
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{_ROW}" rx="6" '
                     'class="box"/>')
        for i, (kind, line) in enumerate(lines):
            down = y + 20 + 17 * i
            parts.append(f'<text x="{x + 12:.0f}" y="{down}" class="{kind}">{escape(line)}</text>')
    for layer in rows[:-1]:
        middle = boxes[layer[0]][1] + _ROW
        parts.append(f'<path d="M {_WIDTH / 2:.0f} {middle} v 22" class="arrow"/>')
    height = 30 + len(rows) * (_ROW + 26)
    style = (".box{fill:#f3f6f8;stroke:#4d6a7a}.name{font:bold 15px sans-serif;fill:#12303f}"
             ".said{font:13px sans-serif;fill:#222}.holds{font:12px monospace;fill:#4d4d4d}"
             ".arrow{stroke:#4d6a7a;stroke-width:1.5;marker-end:url(#tip)}")
    tip = ('<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
           'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#4d6a7a"/></marker>')
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>The library's packages: each imports only from those below it</title>",
        f"<style>{style}</style><defs>{tip}</defs>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>', *parts, "</svg>", ""])


if __name__ == "__main__":
    from ..files import write_text
    write_text(PICTURE, svg())
    print(f"wrote {PICTURE}")
