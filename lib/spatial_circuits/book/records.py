"""Records: a chapter's slow calls, kept under a hash of model, code and arguments, and re-run in
part beside the record.

A call whose hash is known is read, from the chapter's folder in the book or from the user's cache;
any other is computed and put into the cache. So a page shows the same numbers on every machine, and
those of another model, parameter or code are never shown in their place. With `live=k` a call that
was read is run again for its first k prompts: `checked` sets both numbers side by side.
"""
import hashlib
import inspect
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch import Tensor

from ..caches import cache_folder
from ..data.metrics import DISTANCES, METRICS, PARTS
from ..model.pipeline import Model
from ..model.precision import has_bf16_units
from ..text.identity import tensors_hash
from .execute import WRITE
from .frozen import load_frozen, save_frozen
from .sources import code_hash, qualified_name

_CHECKED: dict[str, tuple[Any, str, str]] = {  # how a column of `checked` is made, shown and told
    "calls": ("sum", "{:.0f}", "how often this page calls the function"),
    "read": ("sum", "{:.0f}", "how many of these calls were read from the record"),
    "seconds": ("sum", "{:,.1f}", "what they took when they were recorded"),
    "pictures again": (lambda s: s.sum(min_count=1), "{:,.0f}",
                       "how many pictures, or else prompts, were run again just now"),
    "loose then": ("mean", "{:.3f}", "the share of these with the right relation in the record"),
    "loose now": ("mean", "{:.3f}", "the same today"),
    "same verdict": ("mean", "{:.3f}", "the share of all their scores that are equal"),
    "difference": ("max", "{:.2g}", "where there are no scores, the change of the numbers, as a "
                                    "root mean square over that of the record"),
    "seconds now": (lambda s: s.sum(min_count=1), "{:,.1f}", "what that took")}
_NUMBERS = (*METRICS, *PARTS, *DISTANCES)


class Records:
    """The slow calls of one chapter.

    `records(function, *args, live=0, **kwargs)` is `function(*args, **kwargs)`. What it returns may
    be an argument of a later call, which then hangs on how it came about, not on its last digits.
    folder: where the book keeps records, a folder for each chapter.
    """

    def __init__(self, chapter: str, folder: str | Path = "records"):
        self.kept = Path(folder) / chapter
        self.cache = cache_folder() / "results"
        self.write = bool(os.environ.get(WRITE))
        self.rows: list[dict] = []
        self._known: dict[int, tuple[Any, str]] = {}     # results, held so that no id comes twice

    def __call__(self, function: Callable, *args, live: int = 0, **kwargs) -> Any:
        """The result of the call, read or computed. Raises what the function raises, and ValueError
        for a function without a name or an argument that has no hash."""
        key = self.key(function, args, kwargs)
        path = next((p for p in (self.kept / key, self.cache / key)
                     if p.with_suffix(".json").exists()), None)
        if path is None:
            value, about = self._compute(function, args, kwargs, self.cache / key)
        else:
            value, about = load_frozen(path)
        if self.write and path != self.kept / key:
            save_frozen(self.kept / key, value, about)
        elif self.write:
            self.kept.joinpath(f"{key}.json").touch()
        self._remember(value, key)
        row = {"call": function.__name__, "seconds": about["seconds"], "on": about["machine"],
               "read": path is not None}
        if live and path is not None:
            row |= self._again(function, args, kwargs, value, live)
        self.rows.append(row)
        return value

    def key(self, function: Callable, args: tuple, kwargs: dict) -> str:
        """Hash of the call: 32 hexadecimal digits."""
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        return _digest([qualified_name(function), code_hash(function), self._said(bound.arguments)])

    def named(self, value: Any, *made_from) -> Any:
        """The value, which in the hash of later calls counts as what it was made from: for one that
        other processors compute to other last digits. Name the functions that made it as well."""
        self._known[id(value)] = (value, _digest(self._said(list(made_from))))
        return value

    def _compute(self, function, args, kwargs, path: Path) -> tuple[Any, dict]:
        began = time.perf_counter()
        value = function(*args, **kwargs)
        about = {"call": qualified_name(function), "machine": machine(),
                 "seconds": round(time.perf_counter() - began, 1)}
        save_frozen(path, value, about)
        return load_frozen(path)[0], about               # as a reader will get it

    def _remember(self, value: Any, key: str) -> None:
        self._known[id(value)] = (value, key)
        parts = value if isinstance(value, (tuple, list)) else ()
        if isinstance(value, dict):
            parts = tuple(value.values())
        for number, part in enumerate(parts):
            if isinstance(part, (Tensor, pd.DataFrame, pd.Series, np.ndarray)):
                self._known[id(part)] = (part, f"{key}.{number}")

    def _said(self, value: Any) -> Any:
        """What stands for an argument in the hash."""
        if id(value) in self._known:
            return "result", self._known[id(value)][1]
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple, range)):
            return [self._said(x) for x in value]
        if isinstance(value, dict):
            return "dict", [[self._said(k), self._said(v)] for k, v in value.items()]
        if isinstance(value, Tensor):
            return "tensor", tensors_hash({"x": value})
        if isinstance(value, np.ndarray):
            return "array", str(value.dtype), self._said(value.tolist())
        if isinstance(value, (pd.DataFrame, pd.Series)):
            return "frame", value.to_json(orient="split", double_precision=6)
        if isinstance(value, Model):
            return "model", model_hash(value)
        if inspect.isroutine(value):
            return "function", qualified_name(value), code_hash(value)
        raise ValueError(f"an argument of type {type(value).__name__} has no hash; give numbers, "
                         "texts, frames, tensors, models or containers of these")

    def _again(self, function, args, kwargs, value: Any, live: int) -> dict:
        """Run the call again for the first `live` prompts and compare."""
        bound = inspect.signature(function).bind(*args, **kwargs)
        if "prompts" not in bound.arguments:
            raise ValueError(f"{function.__name__} takes no prompts; leave out live")
        whole = len(bound.arguments["prompts"])
        for name, given in bound.arguments.items():
            if isinstance(given, (list, tuple)) and len(given) == whole:
                bound.arguments[name] = given[:live]
        began = time.perf_counter()
        again = function(*bound.args, **bound.kwargs)
        spent = {"seconds now": round(time.perf_counter() - began, 1)}
        if isinstance(again, pd.DataFrame):
            return {**compare_frames(value, again), **spent}
        if isinstance(again, Tensor):
            return {**compare_tensors(value[:len(again)], again), **spent}
        parts = {f.name: getattr(again, f.name) for f in fields(again)}
        gaps = [compare_tensors(getattr(value, name)[:live], part) for name, part in parts.items()
                if isinstance(part, Tensor) and part.ndim > 2]     # what was measured, not counted
        return {**max(gaps, key=lambda gap: gap["difference"]), **spent}

    def checked(self) -> pd.DataFrame:
        """A row for each slow function, with those columns of _CHECKED that this page has; NaN for
        what was not run again."""
        table = pd.DataFrame(self.rows).assign(calls=1)
        used = {name: how for name, (how, _, _) in _CHECKED.items() if name in table}
        return table.groupby("call", sort=False).agg(used)

    def report(self) -> Markdown:
        """`checked` as a table to read, below it the machines of the record and what the columns
        say."""
        table = self.checked()
        shown = [[_CHECKED[c][1].format(x) if x == x else "–" for c, x in row.items()]
                 for _, row in table.iterrows()]
        rows = [["", *table], ["---", *["--:"] * len(table.columns)],
                *([f"`{name}`", *cells] for name, cells in zip(table.index, shown))]
        told = "; ".join(f"*{c}*, {_CHECKED[c][2]}" for c in table)
        machines = " and ".join(dict.fromkeys(row["on"] for row in self.rows))
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return Markdown(f"{lines}\n\nRecorded on {machines}. Columns: {told}. A dash stands "
                        "where nothing was run again.")


def _digest(said: Any) -> str:
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def compare_frames(then: pd.DataFrame, now: pd.DataFrame) -> dict:
    """Verdicts of pictures in both frames of `metrics.score`: how many, loose, and how many of all
    metrics' verdicts are equal. Rows belong together by what is neither verdict nor distance."""
    keys = [c for c in now if c not in _NUMBERS and now[c].map(np.isscalar).all()]
    metrics = [m for m in METRICS if m in now]
    then, now = (f.assign(picture=f.groupby(keys).cumcount()) for f in (then, now))
    kept = [*keys, "picture", *metrics]
    both = then[kept].merge(now[kept], on=[*keys, "picture"], suffixes=("", "_now"))
    same = np.mean([(both[m] == both[f"{m}_now"]).mean() for m in metrics])
    return {"pictures again": len(both), "loose then": float(both["loose"].mean()),
            "loose now": float(both["loose_now"].mean()), "same verdict": float(same)}


def compare_tensors(then: Tensor, now: Tensor) -> dict:
    """Pictures, or prompts, and the root mean square of the difference over that of the record."""
    then, now = then.float().nan_to_num(), now.float().cpu().nan_to_num()
    gap, scale = ((x ** 2).mean().sqrt() for x in (then - now, then))
    return {"pictures again": len(now), "difference": float(gap / scale.clamp_min(1e-12))}


def machine() -> str:
    """The kind of machine in words: its processor's kind and what it multiplies fast."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    units = "bf16 units" if has_bf16_units() else "no bf16 units"
    return f"{platform.machine()}, {os.cpu_count()} cores, {units}"


def model_hash(model: Model) -> str:
    """What a model's pictures hang on, its precision aside: by the manifest of its folder, else by
    its weights."""
    parts = model.folder / "manifest.json" if model.folder else None
    if parts is None or not parts.exists():
        return tensors_hash(dict(model.transformer.state_dict()))
    listed = json.loads(parts.read_text())
    used = {k: v for k, v in listed.items()
            if k.startswith(("transformer/", "scheduler/", "vae/")) or k == "text.json"}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
