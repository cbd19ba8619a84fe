"""Bundle: models, runtime and the page's code as classic scripts in one folder.

A page that is a file may not fetch, but it may load scripts: each of these puts what it holds into
the global `spatialCircuits`. index.js, small, says what there is and how large it is.
"""
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from ..caches import cache_folder
from ..claims.population import circuit_heads, injection_layer
from ..files import replacing_folder, write_text
from ..model.manifest import check_replaced, write_manifest
from ..model.pipeline import Model
from ..model.store import load
from ..text.identity import tensors_hash
from .contents import language, model_contents, packed_bytes, packed_graph
from .graphs import decoder_graph, transformer_graph
from .runtime import RUNTIME, RUNTIME_FILES, runtime_folder

LIVE_MODELS = ("rte", "t5-untrained")       # those that the book's pages hold
CODE = ("noise.js", "captions.js", "detect.js", "engine.js", "address.js", "page.js")    # in order
EXPORTERS = ("onnx", "onnxscript")
_LIBRARY = Path(__file__).parents[1]
_MAKERS = ("live", "model", "hooks", "text", "data", "analyses")    # whose code counts


def write_live(folder: str | Path, models: Sequence[str] = LIVE_MODELS, page: str = "") -> Path:
    """Write the folder that a live page loads: index.js, the code, the runtime, and each model with
    its decoder; manifest.json has the sha256 of each file. With `page`, the HTML of a figure, also
    an index.html that shows it.

    Replaces `folder` as a whole. Raises ValueError for an unknown or unfit model or a folder that
    holds something else, OSError where the runtime cannot be fetched or ONNX is missing.
    """
    if not models:
        raise ValueError("no model is named; give at least one")
    check_replaced(folder, "index.js")
    nets, key = _loaded(models), _code_key()
    runtime, assets = runtime_folder(), files("spatial_circuits.live") / "assets"
    script, module, wasm = (runtime / name for name in RUNTIME_FILES)
    with replacing_folder(folder) as partial:
        for name in CODE:
            (partial / name).write_text((assets / name).read_text())
        shutil.copy(script, partial / "ort.js")
        parts = {"module": packed_bytes(module.read_bytes()),
                 "wasm": packed_bytes(wasm.read_bytes())}
        (partial / "runtime.js").write_text(_as_script("runtime", parts))
        listed = {}
        for net in nets:
            model, decoder = _scripts(net, key)
            shutil.copy(model, partial)
            shutil.copy(decoder, partial)
            listed[model.stem] = [decoder.name, model.name]
        sizes = {p.name: p.stat().st_size for p in sorted(partial.iterdir())}
        _write_index(partial, {"models": listed, "code": [*CODE, "ort.js", "runtime.js"],
                               "runtime": RUNTIME, "sizes": sizes})
        if page:
            frame = (assets / "page.html").read_text()
            (partial / "index.html").write_text(frame.replace("<!-- figure -->", page))
        write_manifest(partial)
    return Path(folder)


def write_absence(folder: str | Path, reason: str) -> Path:
    """Write, in place of `write_live`, a folder that tells the page why there is no live model."""
    with replacing_folder(folder) as partial:
        _write_index(partial, {"reason": reason})
        write_manifest(partial)
    return Path(folder)


def _write_index(folder: Path, index: dict) -> None:
    said = {"index": index, "language": language()}
    text = f"Object.assign((globalThis.spatialCircuits ??= {{}}), {_json(said)});\n"
    (folder / "index.js").write_text(text)


def _as_script(name: str, content: dict) -> str:
    place = f"((globalThis.spatialCircuits ??= {{}}).files ??= {{}})[{_json(name)}]"
    return f"{place} = {_json(content)};\n"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _loaded(models: Sequence[str]) -> list[Model]:
    """The models, each once. ValueError, before anything is written, for one that is unknown or
    unfit for a page, or two that a page could not tell apart."""
    nets: list[Model] = []
    for name in dict.fromkeys(models):
        net = load(name)
        if not isinstance(net, Model) or not (net.folder / "manifest.json").is_file():
            raise ValueError(f"{name} is no model of this package, which a page needs: its "
                             "encoder, its solver and its records")
        if net.name in [n.name for n in nets]:
            raise ValueError(f"two models are called {net.name}; rename the folder of one")
        nets.append(net)
    return nets


def _scripts(model: Model, key: str) -> tuple[Path, Path]:
    """The scripts of a model and of its decoder, from the cache or made anew; `key` stands for the
    code that makes them."""
    weights = tensors_hash(model.vae.tensors())
    decoder = f"decoder-{weights[:8]}"
    record = (model.folder / "manifest.json").read_text()
    return (_kept(model.name, _digest(key, record), lambda: _model_script(model, decoder)),
            _kept(decoder, _digest(key, weights),
                  lambda: {"graph": packed_graph(decoder_graph(model.vae))}))


def _model_script(model: Model, decoder: str) -> dict:
    about, text, arrays = model_contents(model)
    readers = circuit_heads(model.folder).get("object", [])
    graph = packed_graph(transformer_graph(model.transformer, model.encoder.dim,
                                           injection_layer(readers)))
    return {"about": {**about, "decoder": decoder}, "text": text, "arrays": arrays, "graph": graph}


def _kept(name: str, key: str, make: Callable[[], dict]) -> Path:
    path = cache_folder() / "live" / key / f"{name}.js"
    if not path.exists():
        write_text(path, _as_script(name, make()))
    return path


def _code_key() -> str:
    """What the scripts hang on beside the model: code and versions. OSError if ONNX is missing."""
    try:
        versions = [f"{name} {version(name)}" for name in ("torch", "diffusers", *EXPORTERS)]
    except PackageNotFoundError as error:
        raise OSError(f"{error.name} is missing: pip install {' '.join(EXPORTERS)}") from error
    sources = sorted(p for part in _MAKERS for p in (_LIBRARY / part).rglob("*.py"))
    return _digest(*versions, *(p.read_text() for p in sources))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
