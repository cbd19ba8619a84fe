"""Frozen: results of analyses as strict JSON with their tensors as safetensors, and back.

Frames, series, tensors, arrays, the dataclasses of this library, and containers of these. Tensors
of floating point are kept in fp16. Nothing is unpickled.
"""
import json
import math
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import write_text, writing

_LIBRARY = __name__.split(".")[0]


def freeze(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value; its tensors are put into `tensors`. TypeError for a type not listed above,
    ValueError for a tensor beyond fp16."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [freeze(x, tensors) for x in value]
    if isinstance(value, tuple):
        return {"tuple": [freeze(x, tensors) for x in value]}
    if isinstance(value, dict):
        return {"dict": [[freeze(k, tensors), freeze(v, tensors)] for k, v in value.items()]}
    if isinstance(value, Tensor):
        return {"tensor": _keep(value, tensors)}
    if isinstance(value, np.ndarray):
        return {"array": freeze(value.tolist(), tensors), "dtype": str(value.dtype)}
    if isinstance(value, pd.Series):
        return {"series": freeze(value.to_frame(name="x"), tensors), "name": freeze(
            value.name, tensors)}
    if isinstance(value, pd.DataFrame):
        return _frame(value, tensors)
    if is_dataclass(value) and type(value).__module__.split(".")[0] == _LIBRARY:
        parts = {f.name: freeze(getattr(value, f.name), tensors) for f in fields(value)}
        return {"object": f"{type(value).__module__}:{type(value).__name__}", "fields": parts}
    raise TypeError(f"a {type(value).__name__} cannot be kept; give frames, tensors, numbers, "
                    "texts or containers of these")


def thaw(record: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that `freeze` made the record of. ValueError for a record of anything else."""
    if isinstance(record, list):
        return [thaw(x, tensors) for x in record]
    if not isinstance(record, dict):
        return record
    kind = next(iter(record))
    body = record[kind]
    if kind == "float":
        return float(body)
    if kind == "tuple":
        return tuple(thaw(x, tensors) for x in body)
    if kind == "dict":
        return {thaw(k, tensors): thaw(v, tensors) for k, v in body}
    if kind == "tensor":
        return tensors[body].float() if tensors[body].is_floating_point() else tensors[body]
    if kind == "array":
        return np.array(thaw(body, tensors), dtype=record["dtype"])
    if kind == "series":
        return thaw(body, tensors)["x"].rename(thaw(record["name"], tensors))
    if kind == "columns":
        return _thaw_frame(record, tensors)
    if kind == "object":
        module, _, name = body.partition(":")
        if module.split(".")[0] != _LIBRARY:
            raise ValueError(f"a record names {body!r}, which is not of this library")
        known = getattr(import_module(module), name)
        return known(**{k: thaw(v, tensors) for k, v in record["fields"].items()})
    raise ValueError(f"a record holds {kind!r}, which is no kind of value known here")


def _keep(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    kept = tensor.detach().cpu().contiguous()
    if kept.is_floating_point():
        kept = kept.half()
        if not kept.isfinite().equal(tensor.detach().cpu().isfinite()):
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} holds values beyond fp16")
    name = f"t{len(tensors)}"
    tensors[name] = kept
    return name


def _frame(frame: pd.DataFrame, tensors: dict[str, Tensor]) -> dict:
    """Column by column; a column of texts as its values and their numbers."""
    columns = [_column(frame.iloc[:, i], tensors) for i in range(frame.shape[1])]
    names = [freeze(name, tensors) for name in frame.columns.to_list()]
    index = [_column(frame.index.get_level_values(i).to_series(), tensors)
             for i in range(frame.index.nlevels)]
    return {"columns": columns, "names": names, "index": index,
            "index_names": [freeze(n, tensors) for n in frame.index.names],
            "columns_names": [freeze(n, tensors) for n in frame.columns.names]}


def _column(column: pd.Series, tensors: dict[str, Tensor]) -> dict:
    if pd.api.types.is_bool_dtype(column.dtype):
        return {"bits": "".join(str(int(x)) for x in column)}
    if pd.api.types.is_numeric_dtype(column.dtype):
        return {"numbers": [freeze(x, tensors) for x in column.tolist()],
                "dtype": str(column.dtype)}
    values = column.tolist()
    if all(isinstance(x, str) for x in values):
        distinct = list(dict.fromkeys(values))
        place = {text: i for i, text in enumerate(distinct)}
        return {"texts": distinct, "of": [place[x] for x in values]}
    return {"values": [freeze(x, tensors) for x in values]}


def _thaw_column(record: dict, tensors: dict[str, Tensor]) -> Any:
    if "bits" in record:
        return np.array([x == "1" for x in record["bits"]], dtype=bool)
    if "numbers" in record:
        return np.array(thaw(record["numbers"], tensors), dtype=record["dtype"])
    if "texts" in record:
        return np.array([record["texts"][i] for i in record["of"]], dtype=object)
    column = np.empty(len(record["values"]), dtype=object)
    for i, value in enumerate(record["values"]):
        column[i] = thaw(value, tensors)
    return column


def _thaw_frame(record: dict, tensors: dict[str, Tensor]) -> pd.DataFrame:
    levels = [_thaw_column(c, tensors) for c in record["index"]]
    names = thaw(record["index_names"], tensors)
    index = (pd.Index(levels[0], name=names[0]) if len(levels) == 1
             else pd.MultiIndex.from_arrays(levels, names=names))
    data = {i: _thaw_column(c, tensors) for i, c in enumerate(record["columns"])}
    frame = pd.DataFrame(data, index=index)
    told, labels = thaw(record["names"], tensors), thaw(record["columns_names"], tensors)
    frame.columns = (pd.MultiIndex.from_tuples(told, names=labels) if len(labels) > 1
                     else pd.Index(told, name=labels[0]))
    return frame


def save_frozen(path: Path, value: Any, about: dict) -> None:
    """Write PATH.json with `about` and the value, and PATH.safetensors if it holds tensors."""
    tensors: dict[str, Tensor] = {}
    record = {"about": about, "value": freeze(value, tensors)}
    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    if tensors:
        with writing(path.with_suffix(".safetensors")) as file:
            save_file(tensors, str(file))
    write_text(path.with_suffix(".json"), text + "\n")


def load_frozen(path: Path) -> tuple[Any, dict]:
    """Value and `about` of PATH.json. ValueError, naming the file, for one that is damaged."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        file = path.with_suffix(".safetensors")
        tensors = load_file(file) if file.exists() else {}
        return thaw(record["value"], tensors), record["about"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path.with_suffix('.json')} is damaged ({error}); remove it, and it is "
                         "computed anew") from error
