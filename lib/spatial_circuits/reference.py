"""Reference: the public functions and classes of the library as Markdown, from their docstrings."""
import importlib
import inspect
import pkgutil
import re
from types import ModuleType

import spatial_circuits


def modules() -> list[str]:
    """Names of the library's modules, in the order in which they may import one another, then alphabetically."""
    names = [m.name for m in pkgutil.iter_modules(spatial_circuits.__path__)]
    return sorted(names, key=lambda n: (_depth(n, {}), n))


def _depth(name: str, known: dict[str, int]) -> int:
    """The longest chain of imports within the library below a module."""
    if name not in known:
        known[name] = 0
        source = inspect.getsource(importlib.import_module(f"spatial_circuits.{name}"))
        below = re.findall(r"^from \.+(\w+) import", source, re.M)
        known[name] = 1 + max((_depth(b, known) for b in below if b != name), default=-1)
    return known[name]


def public(module: ModuleType) -> list[tuple[str, object]]:
    """The functions and classes that a module defines and does not hide, in the order of its text."""
    own = [(n, o) for n, o in vars(module).items() if (inspect.isfunction(o) or inspect.isclass(o)) and o.__module__ == module.__name__]
    return [(n, o) for n, o in own if not n.startswith("_") and o.__doc__]


def signature(name: str, obj: object) -> str:
    """Name and parameters; of a class those that make one."""
    try:
        parameters = str(inspect.signature(obj))
    except ValueError:
        parameters = "(...)"
    return name + re.sub(r"<function (\w+) at 0x\w+>", r"\1", re.sub(r"[\w.]*\.(\w+)", r"\1", parameters))


def page(names: list[str] | None = None) -> str:
    """Markdown: a section a module with its docstring, an entry a function. Raises ValueError for an unknown module."""
    unknown = [n for n in names or [] if n not in modules()]
    if unknown:
        raise ValueError(f"there is no module {unknown[0]!r}; choose from {', '.join(modules())}")
    parts = []
    for name in names or modules():
        module = importlib.import_module(f"spatial_circuits.{name}")
        entries = [f"```python\n{signature(n, o)}\n```\n\n{_prose(inspect.getdoc(o))}" for n, o in public(module)]
        parts.append("\n\n".join([f"## {name}", _prose(inspect.getdoc(module)), *entries]))
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    """A docstring as a block of text that keeps its line breaks; its first paragraph as running text."""
    first, _, rest = (text or "").partition("\n\n")
    said = re.sub(r"([\\*_<>\[\]$|{}])", r"\\\1", " ".join(first.split()))
    said = re.sub(r"`([^`]*)`", lambda m: "`" + re.sub(r"\\(.)", r"\1", m[1]) + "`", said)
    return said + (f"\n\n```text\n{rest}\n```" if rest.strip() else "")
