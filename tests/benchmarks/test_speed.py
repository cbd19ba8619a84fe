"""Benchmarks: images/s of every stage, and training FLOP/s as a share of what a matrix product reaches here and now.

`make bench` runs them; `make test` does not. Figures stand in pytest-benchmark's `extra_info` and are printed.
"""
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spatial_circuits import dit
from spatial_circuits.captions import captions
from spatial_circuits.detect import detect_batch
from spatial_circuits.metrics import prompt_set
from spatial_circuits.render import render
from spatial_circuits.sample import sample as draw
from spatial_circuits.scenes import sample
from spatial_circuits.recipe import Recipe, precision
from spatial_circuits.train import Data, read_log, train

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISION = precision("auto")


def note(benchmark, **figures) -> None:
    benchmark.extra_info.update(figures, device=DEVICE, threads=torch.get_num_threads(), torch=torch.__version__)
    print("\n ", benchmark.name, {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in figures.items()})


def images_per_s(benchmark, count: int) -> None:
    note(benchmark, images_per_s=count / benchmark.stats.stats.median)


def finished(result):
    """Wait for the device: a GPU answers before it is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


@pytest.fixture(scope="module")
def images():
    return render(sample(torch.arange(256)))


@pytest.mark.parametrize("preset", ["clean", "paper"])
def test_generation(benchmark, preset):
    """Scenes, captions and pictures; the target is 5,000 a second on 2 cores."""
    start = iter(range(0, 10**9, 512))

    def generate():
        index = next(start)
        scenes = sample(torch.arange(index, index + 512, device=DEVICE), 0, preset)
        return finished((captions(scenes), render(scenes)))
    told, pictures = benchmark.pedantic(generate, rounds=10, warmup_rounds=2)
    assert len(told) == len(pictures) == 512
    images_per_s(benchmark, 512)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_vae(benchmark, vae, images, direction):
    shared = vae.to(DEVICE)
    inputs = images[:64] if direction == "encode" else shared.encode(images[:64])
    out = benchmark.pedantic(lambda: finished(getattr(shared, direction)(inputs)), rounds=5, warmup_rounds=1)
    assert len(out) == 64
    images_per_s(benchmark, 64)


def test_sampling(benchmark, rte):
    """14 steps with CFG, the default model size."""
    model, prompts = dit.build(Recipe().size, rte.dim).eval().to(DEVICE), prompt_set(264)[:64]
    scheduler = Recipe().noise.scheduler()
    out = benchmark.pedantic(lambda: finished(draw(model, scheduler, rte, prompts, range(64))), rounds=3, warmup_rounds=1)
    assert out.shape == (64, 4, 16, 16)
    images_per_s(benchmark, 64)


def test_detection(benchmark, images):
    found = benchmark.pedantic(detect_batch, (images,), rounds=5, warmup_rounds=1)
    assert all(len(blobs) == 2 for blobs in found)
    images_per_s(benchmark, len(images))


def gemm(seconds: float = 2.0, n: int = 2048) -> float:
    """FLOP/s of an n x n matrix product in the precision of training: the best of repeats for `seconds`."""
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[PRECISION]
    a, b = torch.randn(2, n, n, device=DEVICE).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        finished(a @ b)
        best = min(best, time.perf_counter() - began)
    return 2 * n ** 3 / best


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training(benchmark, rte, vae, tmp_path, compiled):
    """`train` as it is run, default recipe but for a small cache; speed from its own log, after the first 50 steps.

    Model FLOPs, forward and backward, are counted by torch and set against a matrix product before and after.
    """
    recipe = Recipe(steps=60, cache=512, compile=compiled)
    before = gemm()
    benchmark.pedantic(train, (recipe, rte, vae, tmp_path / "run"), {"progress": False}, rounds=1)
    speed = read_log(tmp_path / "run" / "log.jsonl")[-1]["images_per_s"]
    limit = (before + gemm()) / 2

    device = torch.device(DEVICE)
    x0, eps, t, text, mask = Data(recipe, rte, vae, device, progress=False).batch(0, torch.arange(recipe.batch, device=device))
    model = dit.build(recipe.size, rte.dim).to(device)
    with FlopCounterMode(display=False) as counter:
        output = dit.predict(model, x0, t * 1000, text, mask)
        recipe.noise.loss(output, x0, eps, t).mean().backward()
    flops = counter.get_total_flops() / recipe.batch  # an image
    assert flops > 6 * 64 * sum(p.numel() for n, p in model.named_parameters() if ".ff." in n)  # 3 passes, 64 tokens
    assert 0 < speed * flops < 1.5 * limit
    note(benchmark, images_per_s=speed, gflop_per_image=flops / 1e9, gflop_per_s=speed * flops / 1e9,
         gemm_gflop_per_s=limit / 1e9, share_of_gemm=speed * flops / limit, precision=PRECISION)
