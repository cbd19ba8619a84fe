"""PixArt-Sigma's shape with random weights: peak memory of each analysis, and time of a step, bare and with readers.

    python tests/benchmarks/big_pixart.py --out book/pixart_costs.json

Each analysis runs in a process of its own, with as few steps and prompts as fill a batch of its usual size, and prints one JSON line: the most
bytes of the process (by the kernel's count, after loading), what they are beside the weights, what `costs` foretells, seconds by
the clock and by the processor, which other programs disturb less. The VAE is a tiny one: `decoding` is a decoder of the
usual size, one picture of 1,024 px. Not a test: it takes gigabytes and, on one core, half an hour. The file is what
chapter and README show.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from processors import processor

from spatial_circuits.analyses import costs
from spatial_circuits.analyses.heatmap import heatmap
from spatial_circuits.analyses.locate import by_mask
from spatial_circuits.analyses.placed import placed_ablation, placed_synopsis
from spatial_circuits.analyses.placed_injection import placed_injection
from spatial_circuits.analyses.predicted import patched_predictions
from spatial_circuits.analyses.screening import screen_layers
from spatial_circuits.book.records import machine
from spatial_circuits.files import write_json
from spatial_circuits.model.export import random_pipeline
from spatial_circuits.model.precision import has_bf16_units
from spatial_circuits.model.store import load

PROMPTS = ["a cat is above a dog", "a red cat is above a dog", "a blue cat is above a dog", "a cat is above a red dog"]
OTHERS = ["a dog is above a cat"]         # of which means are taken: fewer than a half of the others
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
CHANNELS = (128, 256, 512, 512)         # of the VAE that PixArt comes with


def forget_peak() -> None:
    """Let the kernel count the most bytes anew from here."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(line: str) -> int:
    """Bytes of the process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(row.split()[1] for row in status if row.startswith(line)))


def timed(work) -> tuple[float, float]:
    clock, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - used


def decoded(dtype: torch.dtype, size: int) -> dict:
    """A decoder of the usual channels, random weights, one picture."""
    libraries = memory("VmRSS")
    vae = AutoencoderKL(block_out_channels=CHANNELS, layers_per_block=2, latent_channels=4,
                        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4).to(dtype)
    forget_peak()
    with torch.no_grad():
        seconds = timed(lambda: vae.decode(torch.zeros(1, 4, size, size, dtype=dtype)))
    weights = sum(p.numel() * p.element_size() for p in vae.parameters())
    return {"analysis": "decoding", "libraries": libraries, "weights": weights, "peak": memory("VmHWM"),
            "beside the weights": memory("VmHWM") - weights, "estimate": costs.decoder_bytes(CHANNELS, (8 * size) ** 2, dtype.itemsize),
            "seconds": seconds}


def jobs(model) -> dict:
    """By name: what is run, and the estimate of the same with one step (none: another pictures' number)."""
    halves = torch.zeros(2, 8, 8, dtype=torch.bool)
    halves[0, :4] = halves[1, 4:] = True
    locate, sets, some = by_mask(halves), {"L0H0": [(0, 0)]}, [(0, head) for head in range(7)]    # 14 runs of a head: a batch of 16
    return {"heatmap": lambda: heatmap(model, PROMPTS[0], "above", steps=1),
            "synopsis": lambda: placed_synopsis(model, PROMPTS, locate, steps=1),
            "ablate": lambda: placed_ablation(model, PROMPTS, sets, locate, steps=1),
            "patch": lambda: patched_predictions(model, PROMPTS[:1], heads=some, steps=1),
            "inject": lambda: placed_injection(model, PROMPTS, [(0, 1), (1, 1)], locate, early=1, steps=1, means_from=OTHERS),
            "screen": lambda: screen_layers(model, ["a cat on the left of a dog", *PROMPTS])}


def measured(name: str, folder: str, dtype: str, repeats: int) -> dict:
    """One analysis in this process."""
    if name == "decoding":
        return decoded(getattr(torch, DTYPES[dtype]), 128)
    libraries, model = memory("VmRSS"), load(folder, dtype=DTYPES[dtype])
    sizes, weights = costs.sizes_of(model), sum(size for part, size in costs.model_bytes(model).items() if part != "decoding")
    estimate = {one.analysis: one.memory for one in costs.estimates(sizes, len(PROMPTS), steps=1)}
    for module in (model.transformer, model.vae.model, model.pipe.text_encoder):
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()         # in memory, not in a file that is mapped
    forget_peak()
    if name == "speed":
        return speed(model, sizes, repeats)
    seconds = timed(jobs(model)[name])
    peak = memory("VmHWM")
    return {"analysis": name, "libraries": libraries, "weights": weights, "peak": peak, "beside the weights": peak - weights,
            "estimate": estimate[name], "seconds": seconds}


def speed(model, sizes, repeats: int) -> dict:
    """Seconds of a step by clock and processor, bare and with a reader on every head, decoding taken off."""
    def plain() -> None:
        model.latents(PROMPTS[:1], [0], steps=1)
    first = timed(plain)                                    # the first draw lays out memory
    rows: dict[str, list] = {"bare": [], "heatmap": []}
    for _ in range(repeats):
        rows["bare"].append(timed(plain))
        rows["heatmap"].append(timed(lambda: heatmap(model, PROMPTS[0], "above", steps=1)))
    side = model.transformer.config["sample_size"]
    decode = timed(lambda: model.vae.decode(torch.zeros(1, 4, side, side)))
    bare, read = ([statistics.median(x[i] for x in rows[name]) for i in (0, 1)] for name in rows)
    operations = sum(costs.forward_operations(sizes).values())
    return {"first": first, **rows, "decoding": decode, "ratio": [(r - d) / b for r, d, b in zip(read, decode, bare)],
            "ratio counted": 1 + costs.reading_operations(sizes, "words") / operations,
            "operations": operations, "operations a second": operations / bare[1]}


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--layers", type=int, default=28)
    ask.add_argument("--dtype", choices=DTYPES, default="bf16")
    ask.add_argument("--repeats", type=int, default=2, help="of each step that is timed")
    ask.add_argument("--size", type=int, default=128, help="latents a side")
    ask.add_argument("--names", nargs="+", help="of speed, decoding and the analyses; default: all")
    ask.add_argument("--out", type=Path, help="a JSON file; names that it holds are measured anew, the others stay")
    ask.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = ask.parse_args()
    if given.one:
        print(json.dumps(measured(*given.one, given.dtype, given.repeats)))
        return
    names = given.names or ["speed", *jobs(None), "decoding"]
    with tempfile.TemporaryDirectory() as folder:
        pipe = random_pipeline(size=given.size, layers=given.layers, heads=16, head_dim=72)
        config = pipe.transformer.config
        sizes = costs.sizes_of_config({**config, "use_additional_conditions": pipe.transformer.use_additional_conditions}, 300)
        pipe.to(getattr(torch, DTYPES[given.dtype])).save_pretrained(folder)
        del pipe
        found = {"machine": machine(), "processor": processor() + (", AMX" if has_bf16_units() else ""), "threads": torch.get_num_threads(), "torch": torch.__version__,
                 "dtype": given.dtype, "layers": sizes.layers, "heads": sizes.heads, "head_dim": sizes.head_dim,
                 "places": sizes.places, "tokens": sizes.tokens, "parameters": costs.parameters(sizes), "memory": []}
        if given.out and given.out.exists():
            before = json.loads(given.out.read_text())
            found |= {"memory": [row for row in before["memory"] if row["analysis"] not in names], "speed": before.get("speed")}
        for name in names:
            line = [sys.executable, __file__, "--one", name, folder, "--dtype", given.dtype, "--repeats", str(given.repeats)]
            done = subprocess.run(line, capture_output=True, text=True, env=dict(os.environ))
            if done.returncode:
                sys.exit(f"{name}: {done.stderr[-2000:]}")
            row = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps(row), flush=True)
            if name == "speed":
                found["speed"] = row
            else:
                found["memory"].append(row)
            if given.out:
                write_json(given.out, found)


if __name__ == "__main__":
    main()
