"""Pretrained: models as ordinary diffusers folders with a manifest of hashes. `load("rte")` works offline.

A model's folder holds transformer/ and scheduler/ (diffusers), text.json (the encoder), recipe.json, command.txt,
log.jsonl (how it was trained), evaluation.json (`spatial-circuits evaluate`), snapshots/ (cross-attention weights along
the run) and manifest.json (sha256 of every file). The VAE is shared, in the folder `vae`.
"""
import copy
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch import Tensor

from .. import dit
from ..noise import Noise
from ..recipe import precision
from ..sample import sample
from ..text import Encoder, encoder
from ..vae import VAE

HERE = Path(__file__).parent
VAE_FOLDER = HERE / "vae"


@dataclass
class Model:
    """Everything that turns a prompt into a picture, and how it was trained."""
    name: str
    transformer: PixArtTransformer2DModel
    scheduler: DPMSolverMultistepScheduler
    encoder: Encoder
    vae: VAE
    noise: Noise
    text: dict       # name and options of the encoder
    folder: Path

    def latents(self, prompts: list[str], seeds: list[int], **options) -> Tensor:
        """Latents [B, 4, 16, 16]; options as in `sample.sample`."""
        return sample(self.transformer, self.scheduler, self.encoder, prompts, seeds, **options)

    def images(self, prompts: list[str], seeds: list[int], **options) -> Tensor:
        """Pictures, uint8 [B, 3, 128, 128]."""
        return self.vae.decode(self.latents(prompts, seeds, **options))

    def fast(self) -> "Model":
        """This model in bf16 where the processor multiplies it fast (more than twice as many pictures), else itself."""
        if precision("auto") != "bf16":
            return self
        half = VAE(copy.deepcopy(self.vae.model).bfloat16(), self.vae.mean, self.vae.std)
        return replace(self, transformer=dit.fast(self.transformer), vae=half)

    def to(self, device: str | torch.device) -> "Model":
        self.transformer.to(device)
        self.vae = self.vae.to(device)
        return self


def names() -> list[str]:
    """The shipped models."""
    return sorted(p.parent.name for p in HERE.glob("*/text.json"))


def find(name: str | Path) -> Path:
    """The folder of a shipped model by name, or of any that `save` wrote. ValueError if there is none."""
    folder = HERE / name if (HERE / name / "text.json").exists() else Path(name)
    if not (folder / "text.json").exists():
        raise ValueError(f"no model {str(name)!r}; choose from {', '.join(names()) or 'none'} or give a model's folder")
    return folder


def load(name: str | Path, vae: str | Path | None = None) -> Model:
    """A shipped model by name, or any folder that `save` wrote; `vae` names another VAE.

    Raises ValueError for an unknown name, a missing file, or one whose hash is not the manifest's.
    """
    folder = find(name)
    verify(folder)
    text = json.loads((folder / "text.json").read_text())
    noise = Noise(**json.loads((folder / "recipe.json").read_text())["noise"])
    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32,
                                                           use_safetensors=True)
    return Model(folder.name, transformer.eval().requires_grad_(False),
                 DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler"),
                 encoder(text["name"], **text["options"]), load_vae(vae), noise, text, folder)


def load_vae(name: str | Path | None = None) -> VAE:
    """The shipped VAE, or any diffusers VAE by folder or hub name."""
    if name is None:
        verify(VAE_FOLDER)
    return VAE.load(name or VAE_FOLDER)


def save(folder: str | Path, transformer: PixArtTransformer2DModel, text: dict, run: str | Path | None = None,
         noise: Noise | None = None, command: str = "") -> Path:
    """Write a model in fp16, with recipe and log of the `run` folder that made it. Replaces `folder` as a whole."""
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    noise = noise or Noise(**json.loads((Path(run) / "recipe.json").read_text())["noise"])
    _half(transformer).save_pretrained(partial / "transformer")
    _forget_path(partial / "transformer" / "config.json")
    noise.scheduler().save_pretrained(partial / "scheduler")
    (partial / "text.json").write_text(json.dumps(text, indent=1))
    (partial / "command.txt").write_text(command + "\n")
    if run is not None:
        for name in ("recipe.json", "log.jsonl"):
            shutil.copy(Path(run) / name, partial / name)
    else:
        (partial / "recipe.json").write_text(json.dumps({"noise": asdict(noise)}, indent=1))
    write_manifest(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def save_vae(folder: str | Path, model, log: list[dict], command: str) -> Path:
    """Write a trained VAE in fp16 with its log (JSONL), its command and a manifest. Replaces `folder` as a whole."""
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _half(model).save_pretrained(partial)
    _forget_path(partial / "config.json")
    (partial / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    (partial / "command.txt").write_text(command + "\n")
    write_manifest(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def _half(model):
    """A copy of a diffusers model in fp16; the model itself keeps its precision."""
    # without its private keys, among them a list of options that diffusers would set back to their defaults
    copy = type(model).from_config({k: v for k, v in model.config.items() if not k.startswith("_")}).half()
    copy.load_state_dict(model.state_dict())
    return copy


def _forget_path(config: Path) -> None:
    """diffusers notes the folder that a model was loaded from; a shipped config has no business with it."""
    record = json.loads(config.read_text())
    record.pop("_name_or_path", None)
    config.write_text(json.dumps(record, indent=2) + "\n")
    for file in config.parent.iterdir():
        file.chmod(0o644)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write_manifest(folder: Path) -> None:
    """Record the sha256 of every file under `folder` in its manifest.json."""
    (folder / "manifest.json").write_text(json.dumps(_hashes(folder), indent=1))


def verify(folder: Path) -> None:
    """Raises ValueError naming the first file that is missing or whose hash differs, with both hashes."""
    path = folder / "manifest.json"
    if not path.exists():
        raise ValueError(f"{folder} has no manifest.json; save the model again or restore the file")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; restore the file") from error
    found = _hashes(folder)
    for name, wanted in manifest.items():
        if name not in found:
            raise ValueError(f"{folder / name} is missing; restore it")
        if found[name] != wanted:
            raise ValueError(f"{folder / name} is damaged or was changed: sha256 {found[name]}, expected {wanted}")
