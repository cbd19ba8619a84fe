"""PixArt-Sigma's shape with random weights: memory and time of a step, bare and with readers on every head.

    python tests/benchmarks/big_pixart.py --layers 28 --dtype bf16 --repeats 2

Prints one JSON line: bytes at the fullest moment (of the process, by the kernel's count), beside what `costs` says, and
seconds of a step by the clock and by the processor, which other programs disturb less. `synopsis` and `ablate` draw two
pictures at once. Not a test: it takes gigabytes and minutes.
"""
import argparse
import json
import resource
import statistics
import tempfile
import time

import torch

from spatial_circuits.analyses import costs
from spatial_circuits.analyses.heatmap import heatmap
from spatial_circuits.analyses.locate import by_mask
from spatial_circuits.analyses.placed import placed_ablation, placed_synopsis
from spatial_circuits.model.export import random_pipeline
from spatial_circuits.model.store import load

PROMPT = "a cat is above a dog"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(work):
    clock, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - used


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--layers", type=int, default=28)
    ask.add_argument("--dtype", choices=DTYPES, default="bf16")
    ask.add_argument("--repeats", type=int, default=2)
    ask.add_argument("--size", type=int, default=128, help="latents a side")
    ask.add_argument("--analyses", action="store_true", help="synopsis and ablate, too")
    given = ask.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipe = random_pipeline(size=given.size, layers=given.layers, heads=16, head_dim=72)
        pipe.to(getattr(torch, DTYPES[given.dtype])).save_pretrained(folder)
        del pipe
        model = load(folder, dtype=DTYPES[given.dtype])
    sizes, start = costs.sizes_of(model), peak()
    found = {"layers": given.layers, "dtype": given.dtype, "threads": torch.get_num_threads(),
             "parameters": costs.parameters(sizes), "weights": costs.weight_bytes(sizes), "peak before": start}

    def plain():
        model.latents([PROMPT], [0], steps=1)
    first = timed(plain)                                    # the first draw lays out memory
    found |= {"peak bare": peak(), "first": first, "activations counted": costs.activation_bytes(sizes)}
    rows = {"bare": [], "heatmap": []}
    for _ in range(given.repeats):
        rows["bare"].append(timed(plain))
        rows["heatmap"].append(timed(lambda: heatmap(model, PROMPT, "above", steps=1)))
    found["peak heatmap"] = peak()
    decode = [timed(lambda: model.vae.decode(torch.zeros(1, 4, given.size, given.size)))]
    found |= {"seconds": rows, "decoding": decode,
              "kept by heatmap": costs.kept_bytes(sizes, 1)["heatmap"]}
    bare, read = ([statistics.median(x[i] for x in rows[name]) for i in (0, 1)] for name in rows)
    found["ratio"] = [(r - d) / b for r, d, b in zip(read, decode[0], bare)]
    operations = sum(costs.forward_operations(sizes).values())
    found |= {"operations a step": operations, "operations a second": operations / bare[0],
              "ratio counted": 1 + costs.reading_operations(sizes, "words") / operations}
    if given.analyses:
        halves = torch.zeros(2, 8, 8, dtype=torch.bool)
        halves[0, :4] = halves[1, 4:] = True
        for name, work in (
                ("synopsis", lambda: placed_synopsis(model, [PROMPT] * 2, by_mask(halves), steps=1, chunk=2)),
                ("ablate", lambda: placed_ablation(model, [PROMPT] * 2, {"L0H0": [(0, 0)]}, by_mask(halves), steps=1, chunk=2))):
            found[f"seconds {name}"] = timed(work)
            found[f"peak {name}"] = peak()
        found["activations counted, two pictures"] = costs.activation_bytes(sizes, 4)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
