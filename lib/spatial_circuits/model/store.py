"""Store: models as diffusers folders with a manifest of hashes. `load("rte")` works offline.

A model's folder is whole. It holds transformer/ and scheduler/ (diffusers), text.json (the encoder,
its vocabulary, the hash of its weights), vae/ (if not the shipped one), model.json (which VAE, and
the precision of training), recipe.json, command.txt, log.jsonl (how it was trained), snapshots/
(cross-attention weights along the run) and manifest.json (sha256 of every file). The shipped models
also have tables of the analyses; their VAE is shared, in the folder `vae`.
"""
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

from ..caches import cache_folder
from ..files import recover_folder, replacing_folder
from ..memory import keep_freed_memory
from ..text.encoders import complete_record, load_encoder
from ..text.identity import tensors_hash
from .collections import WORKFLOW, collected, collection_of, packed_entry, packed_weights
from .manifest import check_replaced, read_record, verify, write_manifest
from .noise import Noise
from .pipeline import Model
from .stock import load_pipeline
from .transformer import build_transformer
from .vae import VAE

HERE = Path(__file__).parents[1] / "pretrained"
VAE_FOLDER = HERE / "vae"


def names() -> list[str]:
    """The shipped models."""
    return sorted(p.parent.name for p in HERE.glob("*/text.json") if "." not in p.parent.name)


def find_model(name: str | Path) -> Path:
    """The folder of a model: of a shipped one or one of a collection by name, or of any that
    `save_model` wrote. A packed model is first written to the cache. Else ValueError."""
    for folder in (HERE / name, Path(name), WORKFLOW / name):
        recover_folder(folder)
        if (folder / "text.json").exists():
            return folder
    if entry := packed_entry(name):
        return _unpacked(str(name), entry)
    if beside := collection_of(name):
        raise ValueError(f"no model {str(name)!r}; choose from {', '.join(beside)}")
    more = "; `spatial-circuits models` lists others" if collected() else ""
    raise ValueError(f"no model {str(name)!r}; choose from {', '.join(names()) or 'none'} "
                     f"or give a model's folder{more}")


def _unpacked(name: str, entry: dict) -> Path:
    """A folder for a packed model, in the cache, kept under a hash of its entry."""
    mark = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:8]
    folder = cache_folder() / "models" / mark / name
    if (folder / "text.json").exists():
        return folder
    transformer = build_transformer(entry["recipe"]["size"], load_encoder(entry["text"]).dim, 0)
    transformer.load_state_dict(packed_weights(name))
    with tempfile.TemporaryDirectory() as run:
        Path(run, "recipe.json").write_text(json.dumps(entry["recipe"], indent=1))
        Path(run, "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in entry["log"]))
        save_model(folder, transformer, entry["text"], run=run, command=entry["command"],
                   precision=entry["precision"], tables=entry["tables"])
    return folder


def load(name: str | Path, vae: str | Path | None = None, dtype: str | None = None) -> Model:
    """A model by name or folder, as `find_model` finds it, or a diffusers pipeline around a PixArt
    transformer, by folder or hub name; `vae` names another VAE, `dtype` a pipeline's precision.

    Raises ValueError for an unknown name, a missing or damaged file, and an encoder or VAE that is
    not the one the model was trained with.
    """
    other = load_vae(vae).model if vae is not None else None
    if (Path(name) / "model_index.json").is_file():
        return load_pipeline(name, other, dtype)
    try:
        folder = find_model(name)
    except ValueError as error:
        if not is_pipeline(name):
            raise
        try:
            return load_pipeline(name, other, dtype)
        except ValueError as second:
            raise ValueError(f"{error}; {second}") from second
    if dtype is not None:
        raise ValueError(f"dtype {dtype!r} is for diffusers pipelines; {name} runs in float32, and "
                         "`Model.fast` gives it in bf16")
    verify(folder, measured=False)
    keep_freed_memory()
    text, noise = read_record(folder / "text.json"), _noise(folder / "recipe.json")
    try:
        encoder = load_encoder(text, folder)
    except ValueError as error:
        raise ValueError(f"{folder / 'text.json'}: {error}") from error
    transformer = PixArtTransformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32, use_safetensors=True)
    _check_dim(encoder, transformer, folder / "text.json")
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    decoder = load_vae(vae) if vae is not None else _own_vae(folder)
    return Model(folder.name, transformer.eval().requires_grad_(False), scheduler, encoder, decoder,
                 noise, text, folder)


def is_pipeline(name: str | Path) -> bool:
    """Whether `load` takes it for a diffusers pipeline: a folder that holds one, or OWNER/NAME of
    the hub that is no model of ours."""
    if (Path(name) / "model_index.json").is_file():
        return True
    if str(name).count("/") != 1 or Path(name).exists():
        return False
    try:
        find_model(name)
    except ValueError:
        return not collection_of(name)
    return False


def load_vae(name: str | Path | None = None) -> VAE:
    """The shipped VAE, or any diffusers VAE by folder or hub name.

    Raises ValueError where there is none, and for a file that its manifest.json knows otherwise.
    """
    folder = Path(name or VAE_FOLDER)
    recover_folder(folder)
    if name is None or (folder / "manifest.json").exists():
        verify(folder)
    try:
        return VAE.load(name or VAE_FOLDER)
    except OSError as error:
        raise ValueError(f"VAE {str(name)!r} is neither a folder with one nor a hub name that can "
                         f"be reached ({error})") from error


def save_model(folder: str | Path, transformer: PixArtTransformer2DModel, text: dict,
               run: str | Path | None = None, noise: Noise | None = None, command: str = "",
               vae: VAE | None = None, precision: str | None = None,
               tables: dict[str, dict] | None = None) -> Path:
    """Write a model in fp16, with recipe, log and snapshots of the `run` folder that made it.

    text: name and options of the encoder, as from `text.encoders.text_record`. vae: what it was
    trained with, None for the shipped one. precision: that of training, resolved. tables: records
    of analyses, by name. Replaces `folder` as a whole. Raises ValueError, before anything is
    replaced, for a text that does not load or has another dimension, weights that fp16 cannot hold,
    and a folder that holds files of one's own, or things of another kind.
    """
    check_replaced(folder, "text.json")
    record, encoder = complete_record(text)
    _check_dim(encoder, transformer, "text")
    noise = noise or _noise(Path(run or "") / "recipe.json")
    shipped = tensors_hash(load_vae().tensors())
    info = {"vae": shipped if vae is None else tensors_hash(vae.tensors()), "precision": precision}
    with replacing_folder(folder) as partial:
        _half(transformer).save_pretrained(partial / "transformer")
        noise.scheduler().save_pretrained(partial / "scheduler")
        if vae is not None and info["vae"] != shipped:
            vae.save(partial / "vae")
        records = {**(tables or {}), "text": record, "model": info,
                   "recipe": {"noise": asdict(noise)}}
        for name, content in records.items():
            (partial / f"{name}.json").write_text(json.dumps(content, indent=1))
        (partial / "command.txt").write_text(command + "\n")
        if run is not None:
            for name in ("recipe.json", "log.jsonl"):
                shutil.copy(Path(run) / name, partial / name)
            if (Path(run) / "snapshots").is_dir():
                shutil.copytree(Path(run) / "snapshots", partial / "snapshots",
                                ignore=shutil.ignore_patterns("*.partial"))
        _tidy(partial)
    return Path(folder)


def save_vae(folder: str | Path, model: Any, log: list[dict], command: str) -> Path:
    """Write a trained VAE in fp16 with its log (JSONL), its command and a manifest.

    Replaces `folder` as a whole. Raises ValueError for one that holds files of one's own, or things
    of another kind.
    """
    check_replaced(folder, "config.json")
    with replacing_folder(folder) as partial:
        _half(model).save_pretrained(partial)
        (partial / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
        (partial / "command.txt").write_text(command + "\n")
        _tidy(partial)
    return Path(folder)


def _half(model: Any) -> Any:
    """A copy of a diffusers model in fp16; the model itself keeps its precision."""
    # without its private keys, among them a list of options that diffusers would set back
    public = {k: v for k, v in model.config.items() if not k.startswith("_")}
    copy = type(model).from_config(public).half()
    copy.load_state_dict(model.state_dict())
    for name, value in copy.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"weight {name} is not finite in fp16; the model is not saved")
    return copy


def _tidy(folder: Path) -> None:
    """Readable files, and no word of where the models were loaded from; then the manifest."""
    for file in folder.rglob("*.json"):
        if "_name_or_path" in (record := json.loads(file.read_text())):
            del record["_name_or_path"]
            file.write_text(json.dumps(record, indent=2) + "\n")
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    write_manifest(folder)


def _own_vae(folder: Path) -> VAE:
    if (folder / "vae").is_dir():
        return load_vae(folder / "vae")
    vae = load_vae()
    if (folder / "model.json").exists():
        wanted, found = read_record(folder / "model.json").get("vae"), tensors_hash(vae.tensors())
        if wanted != found:
            raise ValueError(f"{folder} was trained with another VAE ({wanted}) than the shipped "
                             f"one ({found}) and holds none; name its VAE")
    return vae


def _check_dim(encoder: Any, transformer: PixArtTransformer2DModel, where: str | Path) -> None:
    wanted = transformer.config["caption_channels"]
    if encoder.dim != wanted:
        raise ValueError(f"{where} names an encoder of {encoder.dim} dimensions; "
                         f"the transformer reads {wanted}")


def _noise(path: Path) -> Noise:
    try:
        return Noise(**read_record(path)["noise"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} tells no noise process: {error!r}; restore the file") from error
