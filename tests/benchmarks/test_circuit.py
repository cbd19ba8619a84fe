"""Benchmarks of the circuit's tools against the straightforward way: store every attention map,
loop over the heads.

`make bench` runs them. The straightforward way is what a diffusers user writes: a processor that
computes the softmax by hand, keeps every map of every layer, step and branch, and one run of the
sampler for each head. Both ways run on the same model, prompts and seeds in the same process.
"""
import time

import pytest
import torch
from test_speed import note

from spatial_circuits.analyses.ablation import ablate
from spatial_circuits.analyses.heads import head_name, heads_of
from spatial_circuits.analyses.sweep import pictures
from spatial_circuits.analyses.synopsis import RoleAttention, synopsis
from spatial_circuits.analyses.weight_maps import screen_words
from spatial_circuits.data.metrics import prompt_set, score
from spatial_circuits.model.store import load
from spatial_circuits.text.roles import role_table

STEPS = 14


@pytest.fixture(scope="module")
def model():
    return load("rte")


@pytest.fixture(scope="module")
def fast(model):
    return model.fast()


class StoringProcessor:
    """Explicit attention that keeps its map and, if told to, zeroes one head's output."""

    def __init__(self, store: list, head: int | None = None):
        self.store, self.head = store, head

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(x)
                   for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1],
                                                         context.shape[0])
        probs = attn.get_attention_scores(q, k, attention_mask)
        self.store.append(probs.detach().cpu())
        z = torch.bmm(probs, v).view(len(hidden_states), attn.heads, hidden_states.shape[1], -1)
        if self.head is not None:
            z[len(z) // 2:, self.head] = 0
        return attn.to_out[0](z.transpose(1, 2).flatten(2))


def store_everything(model, prompts, seeds, ablated=None) -> list:
    """The maps of a run that keeps all; `ablated` (layer, head) is zeroed in branch "cond"."""
    kept = []
    blocks = model.transformer.transformer_blocks
    before = [(m, m.processor) for b in blocks for m in (b.attn1, b.attn2)]
    try:
        for layer, block in enumerate(blocks):
            block.attn1.set_processor(StoringProcessor(kept))
            block.attn2.set_processor(StoringProcessor(kept, ablated[1]
                                                       if ablated and ablated[0] == layer
                                                       else None))
        score(model.images(prompts, seeds), prompts)
    finally:
        for module, processor in before:
            module.set_processor(processor)
    return kept


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_all_heads_ablation(benchmark, model, fast):
    """Zero ablation of all heads, 16 prompts: one sweep against a loop that stores its maps."""
    prompts, heads = prompt_set("96")[::6], heads_of(model)
    sets = {head_name(*h): [h] for h in heads}
    ablate(fast, prompts[:2], sets)  # warm up
    benchmark.pedantic(lambda: ablate(fast, prompts, sets), rounds=2)
    precise = timed(lambda: ablate(model, prompts, sets))
    told, seeds = pictures(prompts, 1, 1)

    def loop():
        for head in [None, *heads]:
            store_everything(model, told, seeds, head)
    straightforward = timed(loop)
    note(benchmark, images=len(prompts) * (1 + len(heads)),
         images_per_s=len(prompts) * (1 + len(heads)) / benchmark.stats.stats.median,
         straightforward_s=straightforward, speedup=straightforward / benchmark.stats.stats.median,
         fp32_s=precise, speedup_fp32=straightforward / precise)


def test_synopsis(benchmark, model, fast):
    """96 prompts x 8 images: time, overhead over sampling, memory against storing all maps."""
    prompts = prompt_set("96")
    part = prompts[::4]
    plain, reading = [], []
    for _ in range(3):  # interleaved: load on the machine hits both
        told, seeds = pictures(part, 4, 1)
        plain.append(timed(lambda: [score(fast.images(told[i:i + 32], seeds[i:i + 32]),
                                          told[i:i + 32])
                                    for i in range(0, len(told), 32)]))
        reading.append(timed(lambda: synopsis(fast, part, 4)))
    found = benchmark.pedantic(lambda: synopsis(fast, prompts, 8), rounds=1)
    kept = store_everything(model, *pictures(prompts[:32], 1, 1))
    naive = sum(m.numel() * m.element_size() for m in kept) / 32 * 768  # linear in the images
    crossed = sum(m.numel() * m.element_size() for m in kept[1::2]) / 32 * 768
    roles = role_table(fast.encoder.encode(prompts[:32]).roles)
    heads = len(heads_of(model))
    chunk = 2 * 32 * STEPS * heads * 64 * roles.shape[-1] * 2 * 2  # fp16: calls and their stack
    result = sum(t.numel() * t.element_size() for t in (found.sum, found.share, found.peak))
    assert RoleAttention(roles).roles.shape[0] == 32
    note(benchmark, images=768, images_per_s=768 / benchmark.stats.stats.median,
         overhead=min(reading) / min(plain) - 1,
         stored_maps_MiB=naive / 2**20, stored_cross_maps_MiB=crossed / 2**20,
         ours_MiB=(chunk + result) / 2**20,
         memory_ratio=naive / (chunk + result), memory_ratio_cross=crossed / (chunk + result))


def test_ramp_screening(benchmark, model):
    """All heads and direction words at once against a loop that projects for every head."""
    prompts = prompt_set("264")
    found = benchmark(lambda: screen_words(model.transformer, model.encoder, prompts))
    note(benchmark, heads=len(heads_of(model)), words=found["word"].nunique(),
         seconds=benchmark.stats.stats.median)
