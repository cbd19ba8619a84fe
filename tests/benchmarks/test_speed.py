"""Benchmarks: images/s of every stage, and training FLOP/s as a share of a matrix product here.

`make bench` runs them; `make test` does not. Figures stand in pytest-benchmark's `extra_info` and
are printed.
"""
import os
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from torch.utils.flop_counter import FlopCounterMode

from spatial_circuits.data.captions import captions
from spatial_circuits.data.detect import detect_batch
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.edits import Ablate
from spatial_circuits.model import transformer as dit
from spatial_circuits.model.compiling import compiled, gelu_by_sigmoid
from spatial_circuits.model.precision import resolve_precision
from spatial_circuits.model.store import load
from spatial_circuits.training.batches import Batches, encode_captions
from spatial_circuits.training.log import read_log
from spatial_circuits.training.loop import batch_loss, optimizers, train, update
from spatial_circuits.training.recipe import Recipe
from spatial_circuits.training.scene_cache import scene_encoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISION = resolve_precision("auto")


def note(benchmark, **figures) -> None:
    benchmark.extra_info.update(figures, device=DEVICE, threads=torch.get_num_threads(),
                                torch=torch.__version__)
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in figures.items()}
    print("\n ", benchmark.name, shown)


def images_per_s(benchmark, count: int) -> None:
    note(benchmark, images_per_s=count / benchmark.stats.stats.median)


def finished(result):
    """Wait for the device: a GPU answers before it is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


@pytest.fixture(scope="module")
def images():
    return render(sample_scenes(torch.arange(256)))


@pytest.mark.parametrize("preset", ["clean", "paper"])
def test_generation(benchmark, preset):
    """Scenes, captions and pictures; the target is 5,000 a second on 2 cores."""
    start = iter(range(0, 10**9, 512))

    def generate():
        index = next(start)
        scenes = sample_scenes(torch.arange(index, index + 512, device=DEVICE), 0, preset)
        return finished((captions(scenes), render(scenes)))
    told, pictures = benchmark.pedantic(generate, rounds=10, warmup_rounds=2)
    assert len(told) == len(pictures) == 512
    images_per_s(benchmark, 512)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_vae(benchmark, vae, images, direction):
    shared = vae.to(DEVICE)
    inputs = images[:64] if direction == "encode" else shared.encode(images[:64])
    work = getattr(shared, direction)
    out = benchmark.pedantic(lambda: finished(work(inputs)), rounds=5, warmup_rounds=1)
    assert len(out) == 64
    images_per_s(benchmark, 64)


@pytest.mark.parametrize("way", ["plain", "hooked", "compiled"])
@pytest.mark.parametrize("batch", [1, 16, 128])
def test_sampling(benchmark, batch, way):
    """14 steps with CFG in fp32, a model of the default size, plain, with hooks on every head, and
    compiled (which is not timed); and the share of a matrix product of the same run."""
    model, prompts = load("rte").to(DEVICE), prompt_set(264)[:batch]
    heads = [(layer, head) for layer in range(6) for head in range(4)]
    with FlopCounterMode(display=False) as counter:
        model.latents(prompts[:1], [0])
    flops = counter.get_total_flops()
    if way == "compiled":
        model = compiled(model, prompts, batch)

    def work():
        with hooked(model.transformer, Ablate(heads)) if way == "hooked" else nullcontext():
            return finished(model.latents(prompts, range(batch), batch=batch))
    before = gemm(1.0, dtype=torch.float32)
    out = benchmark.pedantic(work, rounds=3, warmup_rounds=1)
    limit = (before + gemm(1.0, dtype=torch.float32)) / 2
    assert out.shape == (batch, 4, 16, 16)
    speed = batch / benchmark.stats.stats.median
    note(benchmark, images_per_s=speed, gflop_per_image=flops / 1e9, gemm_gflop_per_s=limit / 1e9,
         share_of_gemm=speed * flops / limit)


SAMPLES = """
import time
from resource import RUSAGE_SELF, getrusage
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load
model, prompts = load("rte"), prompt_set(264)[:128]
model.latents(prompts, range(128), steps=2)
for _ in range(3):
    began, faults = time.perf_counter(), getrusage(RUSAGE_SELF).ru_minflt
    model.latents(prompts, range(128), steps=4)
    print(time.perf_counter() - began, getrusage(RUSAGE_SELF).ru_minflt - faults)
"""


def test_kept_memory(benchmark):
    """Sampling at batch 128 where a loaded model keeps the memory that tensors leave, and where
    the user's environment forbids it: seconds of a step, and pages asked of the kernel; in turn."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    rows = {"kept": [], "given back": []}

    def both():
        for name, variables in (("kept", {}), ("given back", {"MALLOC_ARENA_MAX": "64"})):
            said = subprocess.run([sys.executable, "-c", SAMPLES], env={**plain, **variables},
                                  check=True, capture_output=True, text=True).stdout
            rows[name] += [[float(x) / 4 for x in line.split()] for line in said.splitlines()]
    benchmark.pedantic(both, rounds=2)
    (kept, few), (given, many) = (np.median(rows[name], 0) for name in ("kept", "given back"))
    note(benchmark, kept_s=float(kept), given_back_s=float(given), saved=float(1 - kept / given),
         pages_kept=float(few), pages_given_back=float(many))


def test_detection(benchmark, images):
    found = benchmark.pedantic(detect_batch, (images,), rounds=5, warmup_rounds=1)
    assert all(len(blobs) == 2 for blobs in found)
    images_per_s(benchmark, len(images))


def gemm(seconds: float = 2.0, n: int = 2048, dtype: torch.dtype | None = None) -> float:
    """FLOP/s of an n x n matrix product (default: in training's precision), the best in a while."""
    dtype = dtype or {"no": torch.float32, "bf16": torch.bfloat16}[PRECISION]
    a, b = torch.randn(2, n, n, device=DEVICE).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        finished(a @ b)
        best = min(best, time.perf_counter() - began)
    return 2 * n ** 3 / best


def test_encoding(benchmark, vae):
    """Scenes to latents as the scene cache does it."""
    encode = scene_encoder(Recipe(), vae.to(DEVICE), torch.device(DEVICE))
    rows = torch.arange(256)
    out = benchmark.pedantic(lambda: finished(encode(rows)), rounds=5, warmup_rounds=1)
    assert len(out) == 256
    images_per_s(benchmark, 256)


def flops_per_image(model, recipe, batch) -> float:
    """Forward and backward of the model, counted by torch; the optimizer is not in it."""
    with FlopCounterMode(display=False) as counter:
        batch_loss(model, recipe.noise, *batch).backward()
    model.zero_grad()
    return counter.get_total_flops() / len(batch[0])


def test_training_step(benchmark, rte, vae):
    """A step of the default recipe part by part (medians), and its share of a matrix product: not
    compiled, compiled as the model is written (GELU by tanh), and as `train` runs it. In turn, so
    that a machine that slows down slows all three."""
    recipe, device = Recipe(cache=512), torch.device(DEVICE)
    batches = Batches(recipe, encode_captions(rte), vae, device, progress=False)
    model = dit.build_transformer(recipe.size, rte.dim).to(device)
    opts = optimizers(model, recipe)
    if DEVICE == "cpu" and PRECISION == "bf16":
        model.set_attn_processor(AttnProcessor())   # as `train` does
    ema = EMAModel(model.parameters(), decay=recipe.ema, use_ema_warmup=True, foreach=True)
    rows = torch.arange(recipe.batch, device=device)
    flops = flops_per_image(model, recipe, batches.batch(0, rows)) * recipe.batch
    compiled = torch.compile(model)
    parts: dict[str, list[float]] = {}

    def timed(name, work):
        began = time.perf_counter()
        result = finished(work())
        parts.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def step(how, forward, gelu):
        batch = timed(f"{how}, batch", lambda: batches.batch(0, rows))
        with gelu, torch.autocast(DEVICE, torch.bfloat16, enabled=PRECISION == "bf16"):
            loss = timed(f"{how}, forward", lambda: batch_loss(forward, recipe.noise, *batch))
        timed(f"{how}, backward", loss.backward)
        timed(f"{how}, optimizer", lambda: update(opts, list(model.parameters()), recipe.clip))
        timed(f"{how}, ema", lambda: ema.step(model.parameters()))

    def steps():
        step("eager", model, nullcontext())
        step("compiled, tanh", compiled, nullcontext())
        step("compiled", compiled, gelu_by_sigmoid(model))
    steps()
    parts.clear()
    before = gemm()
    benchmark.pedantic(steps, rounds=12)
    limit = (before + gemm()) / 2
    seconds = {name: float(np.median(times)) for name, times in parts.items()}
    whole = {how: sum(s for name, s in seconds.items() if name.rpartition(", ")[0] == how)
             for how in ("eager", "compiled, tanh", "compiled")}
    note(benchmark, **seconds, **{f"{how}, step": s for how, s in whole.items()},
         optimizer_share=seconds["compiled, optimizer"] / whole["compiled"], gflop=flops / 1e9,
         gemm_gflop_per_s=limit / 1e9, share_of_gemm=flops / whole["compiled"] / limit,
         precision=PRECISION)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training(benchmark, rte, vae, tmp_path, compiled):
    """`train` as it is run, default recipe but for a small cache; speed from its own log, after the
    first 50 steps, against a matrix product before and after."""
    recipe = Recipe(steps=60, cache=512, compile=compiled)
    before = gemm()
    benchmark.pedantic(train, (recipe, rte, vae, tmp_path / "run"), {"progress": False}, rounds=1)
    speed = read_log(tmp_path / "run" / "log.jsonl")[-1]["images_per_s"]
    limit = (before + gemm()) / 2
    device = torch.device(DEVICE)
    batches = Batches(recipe, encode_captions(rte), vae, device, progress=False)
    model = dit.build_transformer(recipe.size, rte.dim).to(device)
    rows = torch.arange(recipe.batch, device=device)
    flops = flops_per_image(model, recipe, batches.batch(0, rows))
    mlps = sum(p.numel() for n, p in model.named_parameters() if ".ff." in n)
    assert flops > 6 * 64 * mlps  # 3 passes, 64 tokens
    assert 0 < speed * flops < 1.5 * limit
    note(benchmark, images_per_s=speed, gflop_per_image=flops / 1e9,
         gflop_per_s=speed * flops / 1e9, gemm_gflop_per_s=limit / 1e9,
         share_of_gemm=speed * flops / limit, precision=PRECISION)
