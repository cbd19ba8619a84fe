"""Scene cache: the latents of the training scenes, encoded once on a machine, shared by all runs.

A cache is KEY.f16, the latents in chunks, and KEY.json, the sha256 of each finished chunk; KEY is a
hash of what the latents depend on. A chunk counts if its bytes have the recorded hash. So a kill, a
flipped bit or a full disk costs a chunk, and several processes may come at once.
"""
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..caches import cache_folder
from ..data.render import render
from ..data.scenes import sample_scenes
from ..files import write_json
from ..model.vae import VAE
from .checkpoint import tensor_hash
from .lock import locked
from .recipe import Recipe

CHUNK = 1024                # scenes that are hashed, and encoded again, together
BATCH = 16                  # scenes encoded together: their activations stay in a processor's cache


def vae_hash(vae: VAE) -> str:
    """sha256 of weights, statistics and configuration of a VAE."""
    config = {k: v for k, v in dict(vae.model.config).items() if not k.startswith("_")}
    tensors = {**vae.model.state_dict(), "latents.mean": vae.mean, "latents.std": vae.std}
    return tensor_hash(tensors, json.dumps(config, sort_keys=True, default=str))


def scene_key(recipe: Recipe, vae: VAE) -> str:
    """Names the latents by VAE, stream, preset, count, and the pixels of 256 scenes of the stream:
    a renderer that draws otherwise has another key."""
    some = torch.arange(256) * max(1, recipe.cache // 256)
    pixels = render(sample_scenes(some, recipe.seed, recipe.preset))
    choice = [vae_hash(vae), recipe.seed, recipe.preset, recipe.cache, CHUNK]
    return tensor_hash({"pixels": pixels}, json.dumps(choice))[:32]


def scene_encoder(recipe: Recipe, vae: VAE, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from scene numbers [B] to latents [B, 4, 16, 16]."""
    def encode(index: Tensor) -> Tensor:
        scenes = sample_scenes(index.to(device), recipe.seed, recipe.preset)
        return vae.encode(render(scenes), batch=BATCH)
    return encode


def scene_latents(recipe: Recipe, vae: VAE, device: torch.device, progress: bool = True) -> Tensor:
    """Latents [cache, 4, 16, 16] of the recipe's scenes in fp16, mapped from disk (on a CPU).

    What is missing or damaged there is encoded, the latter with a warning. Where nothing can be
    written, all is encoded into memory, with a warning.
    """
    path = cache_folder() / f"scenes-{scene_key(recipe, vae)}.f16"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return _from_disk(path, recipe, vae, device, progress)
    except OSError as error:
        warnings.warn(f"the encoded scenes cannot be kept: {error}", stacklevel=2)
        encode = scene_encoder(recipe, vae, device)
        chunks = torch.arange(recipe.cache).split(CHUNK)
        bar = tqdm(chunks, desc="encoding scenes", disable=not progress)
        return torch.cat([encode(c).half() for c in bar]).to(device)


def _from_disk(path: Path, recipe: Recipe, vae: VAE, device: torch.device,
               progress: bool) -> Tensor:
    encode = scene_encoder(recipe, vae, device)
    shape = encode(torch.arange(1)).shape[1:]                                   # 4 x 16 x 16
    chunks = torch.arange(recipe.cache).split(CHUNK)
    with locked(path), path.open("r+b") as file:    # a second process waits, then finds all done
        hashes = _recorded(path.with_suffix(".json"))
        missing = []
        for n, chunk in enumerate(chunks):
            found = _sha256(file.read(2 * len(chunk) * shape.numel()))
            if hashes.get(str(n)) not in (None, found):
                warnings.warn(f"scenes {chunk[0]:,} to {chunk[-1]:,} in {path} are damaged; "
                              "encoding them again", stacklevel=3)
            if hashes.get(str(n)) != found:
                missing.append(n)
        for n in tqdm(missing, desc="encoding scenes", disable=not (progress and missing)):
            data = encode(chunks[n]).half().cpu().numpy().tobytes()
            file.seek(2 * n * CHUNK * shape.numel())
            file.write(data)
            file.flush()
            hashes[str(n)] = _sha256(data)
            write_json(path.with_suffix(".json"), hashes)
    count = recipe.cache * shape.numel()
    mapped = torch.from_file(str(path), shared=False, size=count, dtype=torch.float16)
    return mapped.view(recipe.cache, *shape).to(device)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _recorded(path: Path) -> dict[str, str]:
    """The hashes of the finished chunks; none where there is no record, or it cannot be read."""
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {}
    except (FileNotFoundError, ValueError):
        return {}
