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
from ..model.vae import VAE, to_unit
from .checkpoint import tensor_hash
from .compiling import compiled_or_eager
from .lock import locked
from .recipe import Recipe

CHUNK = 1024                # scenes that are hashed, and encoded again, together
BATCH = 16                  # scenes encoded together: their activations stay in a processor's cache
COMPILE_FROM = 4096         # scenes to encode that are worth half a minute of compilation


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


def scene_encoder(recipe: Recipe, vae: VAE, device: torch.device,
                  compile: bool = False) -> Callable[[Tensor], Tensor]:
    """A function from scene numbers [B] to latents [B, 4, 16, 16]; compiled, more than twice as
    fast on CPUs, and the same within 1e-3."""
    def modes(images: Tensor) -> Tensor:
        return vae.model.encode(to_unit(images, device)).latent_dist.mode()

    def draw(index: Tensor) -> Tensor:
        return render(sample_scenes(index.to(device), recipe.seed, recipe.preset))
    if not compile:
        return lambda index: vae.encode(draw(index), batch=BATCH)
    with torch.no_grad():
        fast = compiled_or_eager(modes, lambda f: f(draw(torch.arange(BATCH))), dynamic=False)

    @torch.no_grad()
    def encode(index: Tensor) -> Tensor:
        full = torch.cat([index, index[:1].expand(-len(index) % BATCH)])        # whole batches
        latents = torch.cat([fast(images) for images in draw(full).split(BATCH)])
        return (latents[:len(index)] - vae.mean) / vae.std
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
        encode = scene_encoder(recipe, vae, device, _worth_it(recipe.cache, device))
        chunks = torch.arange(recipe.cache).split(CHUNK)
        bar = tqdm(chunks, desc="encoding scenes", disable=not progress)
        return torch.cat([encode(c).half() for c in bar]).to(device)


def _worth_it(count: int, device: torch.device) -> bool:
    return device.type == "cpu" and count >= COMPILE_FROM


def _from_disk(path: Path, recipe: Recipe, vae: VAE, device: torch.device,
               progress: bool) -> Tensor:
    shape = scene_encoder(recipe, vae, device)(torch.arange(1)).shape[1:]       # 4 x 16 x 16
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
        if missing:
            count = sum(len(chunks[n]) for n in missing)
            encode = scene_encoder(recipe, vae, device, _worth_it(count, device))
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
