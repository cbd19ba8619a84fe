"""Sources: which code a result depends on, as a hash that comments and docstrings do not change."""
import ast
import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

_LIBRARY = __name__.split(".")[0]


def code_hash(function: Callable) -> str:
    """sha256 over the function's module and every module of this library that it imports, directly
    or through others. A function of another library counts by its name alone."""
    name = function.__module__
    if name.split(".")[0] != _LIBRARY:
        return f"{name}.{function.__qualname__}"
    parts = sorted(_reached(name))
    return hashlib.sha256("".join(_module_hash(part) for part in parts).encode()).hexdigest()


@cache
def _reached(name: str) -> frozenset[str]:
    """The module and all that it imports within the library."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(_imported(module))
    return frozenset(found)


@cache
def _imported(name: str) -> tuple[str, ...]:
    """Modules of the library that a module imports, wherever in it."""
    found = []
    package = name.rpartition(".")[0]
    for node in ast.walk(ast.parse(_source(name))):
        if not isinstance(node, ast.ImportFrom):
            continue
        dotted = "." * node.level + (node.module or "")
        target = resolve_name(dotted, package) if node.level else dotted
        if target.split(".")[0] != _LIBRARY:
            continue
        inner = [f"{target}.{alias.name}" for alias in node.names]
        found += [one for one in inner if _is_module(one)] or [target]
    return tuple(found)


@cache
def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:     # its parent is a module, so this is a name in it
        return False


@cache
def _source(name: str) -> str:
    spec = find_spec(name)
    return Path(str(spec.origin)).read_text(encoding="utf-8") if spec else ""


@cache
def _module_hash(name: str) -> str:
    """Hash of a module's syntax tree without its docstrings."""
    tree = ast.parse(_source(name))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
                ast.get_docstring(node) is not None):
            node.body = node.body[1:]
    return hashlib.sha256(f"{name} {ast.dump(tree)}".encode()).hexdigest()


def qualified_name(function: Callable) -> str:
    """module.name of a function of the library or another; ValueError for what has no such name, as
    a lambda or a function within a function, since it could not be known again."""
    name = getattr(function, "__qualname__", "")
    if not inspect.isroutine(function) or "<" in name:
        raise ValueError(f"{function!r} has no name of its own; give a function of a module")
    return f"{function.__module__}.{name}"
