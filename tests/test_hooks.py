"""Hooks: reading leaves a model as it is, and each edit does what can be done by hand."""
import copy
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.core import Reader
from spatial_circuits.hooks.edits import (
    Ablate,
    AddResidual,
    MaskKeys,
    Patch,
    PatchResidual,
    PathPatch,
    Replace,
)
from spatial_circuits.hooks.readers import MeanOutputs, MeanResidual, Patterns, Residual
from spatial_circuits.hooks.run import run
from spatial_circuits.model.sampler import initial_noise
from spatial_circuits.model.transformer import predict

PROMPTS = ["red square is above blue circle",
           "triangle is diagonally down and left from red circle",
           "circle is left of square", "red square is below blue circle"]
PAIR = [PROMPTS[0], PROMPTS[3]]        # of equal length
HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]
ALL_STAGES = ("output", "pattern", "value", "query", "key")
D = 8                                  # of a head
pytestmark = pytest.mark.usefixtures("one_thread")


def latents(net, *hooks, prompts=PROMPTS, steps=2, **options):
    return run(net, prompts, range(len(prompts)), *hooks, steps=steps, **options)


def forward(net, *hooks, prompts=PAIR, seeds=None, model=None, mask=None, branches=("cond",),
            time=900.0):
    """One prediction [B, 4, 16, 16], all from the same noise unless `seeds` are given."""
    text, model = net.encoder.encode(prompts), model or net.transformer
    noise = initial_noise(seeds or [0] * len(prompts))
    with torch.no_grad(), hooked(model, *hooks) as session:
        session.at(0, branches)
        return predict(model, noise, torch.full((len(prompts),), time), text.embeddings,
                       text.mask if mask is None else mask)


def close(a, b):
    return torch.allclose(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


def differ(a, b):
    """Far more than rounding would make."""
    return float((a - b).abs().max()) > 1e-3 * float(b.abs().max())


@contextmanager
def recorded(model):
    """What plain torch hooks see, {(layer, attn1 or attn2, name)} -> one tensor a forward: what
    comes out of to_q, to_k and to_v, what goes into to_out, and "input", what goes into to_q.
    (layer, "stream") is what goes into the block."""
    seen, handles = {}, []
    for i, block in enumerate(model.transformer_blocks):
        for kind in ("attn1", "attn2"):
            attn = getattr(block, kind)
            for name in ("to_q", "to_k", "to_v"):
                handles.append(getattr(attn, name).register_forward_hook(
                    lambda m, x, out, key=(i, kind, name): seen.setdefault(key, []).append(out)))
            for name, module in (("to_out", attn.to_out[0]), ("input", attn.to_q)):
                handles.append(module.register_forward_pre_hook(
                    lambda m, x, key=(i, kind, name): seen.setdefault(key, []).append(x[0])))
        handles.append(block.register_forward_pre_hook(
            lambda m, x, key=(i, "stream"): seen.setdefault(key, []).append(x[0])))
    handles.append(model.norm_out.register_forward_pre_hook(
        lambda m, x, key=(i + 1, "stream"): seen.setdefault(key, []).append(x[0])))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def altered(module, change, before=False):
    """A plain torch hook: `change` the output of a module (or, `before`, its input)."""
    handle = (module.register_forward_pre_hook(lambda m, x: (change(x[0]), *x[1:])) if before else
              module.register_forward_hook(lambda m, x, out: change(out)))
    try:
        yield
    finally:
        handle.remove()


def columns(head):
    return slice(head * D, (head + 1) * D)


def without(model, *heads):
    """A copy whose output projections do not read these heads."""
    model = copy.deepcopy(model)
    for layer, head in heads:
        model.transformer_blocks[layer].attn2.to_out[0].weight[:, columns(head)] = 0
    return model


def manual_pattern(seen, layer, kind, step, bias=None):
    """[B, H, N, T] by the textbook from recorded queries and keys."""
    q, k = (seen[layer, kind, name][step].unflatten(-1, (2, D)).transpose(1, 2)
            for name in ("to_q", "to_k"))
    scores = q @ k.transpose(-1, -2) / D ** 0.5
    return (scores if bias is None else scores + bias[:, None, None]).softmax(-1)


def biases(net, prompts):
    """[2 B, T] for the uncond and the cond branch: minus infinity at pads."""
    mask = net.encoder.encode(["", *prompts]).mask
    mask = torch.cat([mask[:1].expand(len(prompts), -1), mask[1:]])
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


# ---- nothing changes

READERS = {
    "patterns": lambda: Patterns(HEADS), "self-attention": lambda: Patterns(HEADS, "self"),
    "outputs": MeanOutputs, "self outputs": lambda: MeanOutputs("self"), "inputs": MeanResidual,
    "stream": lambda: Residual(1),
    "final stream": lambda: Residual(2),
}


def state(model):
    return ([id(p) for p in model.attn_processors.values()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()])


@pytest.mark.parametrize("kinds", [[k] for k in READERS] + [list(READERS)],
                         ids=lambda k: k[0] if len(k) == 1 else "all")
def test_reading_leaves_samples_bit_identical_and_the_model_as_it_was(tiny, kinds):
    plain, before = tiny.latents(PROMPTS, range(4), steps=2), state(tiny.transformer)
    assert torch.equal(latents(tiny, *(READERS[k]() for k in kinds)), plain)
    assert state(tiny.transformer) == before and not sum(before[1])
    assert torch.equal(tiny.latents(PROMPTS, range(4), steps=2), plain)


def test_after_an_exception_the_model_is_as_it_was(tiny):
    class Broken(Reader):
        def read(self, call):
            raise KeyError("broken")
    plain, before = tiny.latents(PAIR, [0, 1], steps=1), state(tiny.transformer)
    with pytest.raises(KeyError, match="broken"):
        latents(tiny, Ablate(HEADS), AddResidual(torch.ones(16)), Broken(), prompts=PAIR, steps=1)
    assert state(tiny.transformer) == before
    with pytest.raises(KeyError, match="mine"), hooked(tiny.transformer, Ablate(HEADS)):
        assert state(tiny.transformer) != before
        raise KeyError("mine")  # and no RuntimeError in its place, though the hook never acted
    assert state(tiny.transformer) == before
    assert torch.equal(tiny.latents(PAIR, [0, 1], steps=1), plain)


def test_contexts_nest(tiny):
    outer, inner = MeanOutputs(), Patterns([(0, 0)])
    before = state(tiny.transformer)
    with hooked(tiny.transformer, outer):
        middle = state(tiny.transformer)
        with hooked(tiny.transformer, inner):
            tiny.latents(PAIR, [0, 1], steps=1)
        assert state(tiny.transformer) == middle
        tiny.latents(PAIR, [0, 1], steps=1)
    assert state(tiny.transformer) == before and outer.mean.shape[0] == 1


# ---- readings

@pytest.mark.parametrize("kind", ["cross", "self"])
def test_the_explicit_pattern_is_what_the_fused_kernel_does(tiny, kind):
    class Check(Reader):
        calls = 0

        def read(self, call):
            pattern, self.calls = call.pattern, self.calls + 1
            assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-5)
            assert close(pattern @ call.value, call.output)
            if call.mask is not None:
                assert not pattern[(call.mask < -1).expand_as(pattern)].any()
    check = Check(kind=kind)
    latents(tiny, check)
    assert check.calls == 2 * 2  # steps, layers


@pytest.mark.parametrize("kind, branch, steps, batch", [
    ("cross", "cond", None, 128), ("cross", "uncond", None, 3), ("cross", "cond", [1], 3),
    ("self", "cond", None, 2),
    ("self", "uncond", [0], 128)])
def test_patterns_are_the_textbook_s(tiny, kind, branch, steps, batch):
    reader = Patterns([(0, 1), (1, 0)], kind, steps, branch)
    latents(tiny, reader, batch=batch)
    with recorded(tiny.transformer) as seen:
        tiny.latents(PROMPTS, range(4), steps=2)
    bias = biases(tiny, PROMPTS) if kind == "cross" else None
    for (layer, head), found in reader.maps.items():
        wanted = [manual_pattern(seen, layer, "attn2" if kind == "cross" else "attn1", step, bias)
                  for step in steps or (0, 1)]
        part = slice(4, 8) if branch == "cond" else slice(0, 4)
        wanted = torch.stack([w[part, head] for w in wanted], 1)
        assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5)
        assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("kind, batch", [("cross", 128), ("cross", 3), ("self", 3)])
def test_mean_outputs_are_what_goes_into_the_output_projection(tiny, kind, batch):
    group = torch.tensor([1, 0, 1, 1])
    reader, grouped = MeanOutputs(kind), MeanOutputs(kind, group)
    latents(tiny, reader, grouped, batch=batch)
    with recorded(tiny.transformer) as seen:
        tiny.latents(PROMPTS, range(4), steps=2)
    assert reader.mean.shape == (2, 2, 2, 2, 64, D) and grouped.mean.shape == (2, 2, 2, 2, 2, 64, D)
    for step in range(2):
        for layer in range(2):
            out = seen[layer, "attn2" if kind == "cross" else "attn1", "to_out"][step]
            out = out.view(2, 4, 64, 2, D).transpose(2, 3)
            assert close(reader.mean[step, :, layer], out.mean(1))
            for g in range(2):
                assert close(grouped.mean[g, step, :, layer], out[:, group == g].mean(1))


@pytest.mark.parametrize("batch", [128, 3])
def test_inputs_and_streams_are_what_the_modules_receive(tiny, batch):
    inputs, null = MeanResidual(1), MeanResidual(0, "uncond")
    streams = {(layer, branch): Residual(layer, branch=branch) for layer in range(3)
               for branch in ("cond", "uncond")}
    last = Residual(1, [1])
    latents(tiny, inputs, null, last, *streams.values(), batch=batch)
    with recorded(tiny.transformer) as seen:
        tiny.latents(PROMPTS, range(4), steps=2)
    for layer in range(2):
        assert close(inputs.mean[layer], seen[layer, "attn2", "input"][1][4:].mean(0))
        assert close(null.mean[layer], seen[layer, "attn2", "input"][0][:4].mean(0))
    for (layer, branch), reader in streams.items():
        part = slice(4, 8) if branch == "cond" else slice(0, 4)
        wanted = torch.stack([x[part] for x in seen[layer, "stream"]], 1)
        assert reader.values.shape == (4, 2, 64, 16) and close(reader.values, wanted)
    assert torch.equal(last.values, streams[1, "cond"].values[:, 1:])


def test_readers_see_what_edits_left_whatever_their_order(tiny):
    first, last, outputs = Residual(1), Residual(1), MeanOutputs()
    latents(tiny, outputs, first, AddResidual(torch.full((16,), 100.0), 1),
            Ablate([(0, 1)], branch="both"), last)
    assert torch.equal(first.values, last.values) and first.values.mean() > 50
    assert not outputs.mean[:, :, 0, 1].any() and outputs.mean[:, :, 0, 0].all()


# ---- ablation

def test_zero_ablation_is_zeroed_columns_of_the_output_projection(tiny):
    for head in HEADS:
        plain = forward(tiny)
        found = forward(tiny, Ablate([head]))
        assert close(found, forward(tiny, model=without(tiny.transformer, head)))
        assert differ(found, plain)


@settings(max_examples=10)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2,
                max_size=2).filter(lambda x: any(map(any, x))))
def test_any_set_of_heads_can_be_ablated_in_each_sample(tiny, chosen):
    where = torch.tensor(chosen).view(2, 2, 2)
    found = forward(tiny, Ablate(where))
    for i, row in enumerate(chosen):
        model = without(tiny.transformer,
                        *(head for head, on in zip(HEADS, row, strict=True) if on))
        assert close(found[i], forward(tiny, model=model)[i])


def test_one_branch_can_be_ablated(tiny):
    prompts = ["", *PROMPTS[:1]]
    model = without(tiny.transformer, (1, 0))
    plain, both = forward(tiny, prompts=prompts), forward(tiny, model=model, prompts=prompts)
    for branch, want in (("cond", [plain[0], both[1]]), ("uncond", [both[0], plain[1]]),
                         ("both", both)):
        found = forward(tiny, Ablate([(1, 0)], branch=branch), prompts=prompts,
                        branches=("uncond", "cond"))
        assert close(found, torch.stack([*want]))


def test_mean_ablation_puts_the_mean_of_that_step_and_branch_there(tiny):
    mean = torch.randn(3, 2, 2, 2, 64, D, generator=torch.Generator().manual_seed(0))
    step = iter(range(3))

    def change(x):
        m, x = mean[next(step), :, 1, 0], x.clone()
        x[:4, :, columns(0)], x[4:, :, columns(0)] = m[0], m[1]
        return x
    with altered(tiny.transformer.transformer_blocks[1].attn2.to_out[0], change, before=True):
        wanted = tiny.latents(PROMPTS, range(4), steps=3)
    found = latents(tiny, Ablate([(1, 0)], mean, branch="both"), steps=3)
    assert close(found, wanted) and differ(found, tiny.latents(PROMPTS, range(4), steps=3))


def test_the_mean_over_one_picture_changes_nothing_and_over_others_does(tiny):
    own, others = MeanOutputs(), MeanOutputs()
    plain = latents(tiny, own, prompts=PAIR[:1], steps=3)
    latents(tiny, others, steps=3)
    assert close(latents(tiny, Ablate(None, own.mean, branch="both"), prompts=PAIR[:1], steps=3),
                 plain)
    assert differ(latents(tiny, Ablate(None, others.mean, branch="both"), prompts=PAIR[:1],
                          steps=3), plain)


# ---- hidden keys

def test_keys_hidden_from_all_heads_are_tokens_masked_out(tiny):
    mask = tiny.encoder.encode(PAIR).mask
    keys = torch.zeros_like(mask)
    keys[0, 3] = keys[1, 1] = keys[1, 2] = True
    found = forward(tiny, MaskKeys(keys))
    assert close(found, forward(tiny, mask=mask & ~keys)) and differ(found, forward(tiny))
    # both branches at once
    null = torch.cat([tiny.encoder.encode(["", PAIR[0]]).mask[:1].expand(2, -1), mask])
    found = forward(tiny, MaskKeys(keys, branch="both"), prompts=["", "", *PAIR],
                    branches=("uncond", "cond"))
    assert close(found, forward(tiny, prompts=["", "", *PAIR], mask=null & ~keys.repeat(2, 1)))


def test_a_key_hidden_from_one_head_has_no_score_there(tiny):
    keys = torch.zeros(1, 7, dtype=torch.bool)
    keys[0, 3] = True
    with recorded(tiny.transformer) as seen:
        forward(tiny)
    bias = torch.zeros(2, 7)
    bias[:, 3] = -torch.inf
    masked = manual_pattern(seen, 0, "attn2", 0, bias)[:, 1]  # [B, N, T]
    value = seen[0, "attn2", "to_v"][0][..., columns(1)]

    def change(x):
        x = x.clone()
        x[..., columns(1)] = masked @ value
        return x
    with altered(tiny.transformer.transformer_blocks[0].attn2.to_out[0], change, before=True):
        wanted = forward(tiny)
    reader = Patterns(HEADS)
    found = forward(tiny, MaskKeys(keys, [(0, 1)]), reader)
    assert close(found, wanted) and differ(found, forward(tiny))
    assert not reader.maps[0, 1][..., 3].any() and reader.maps[0, 0][..., 3].all()
    assert torch.allclose(reader.maps[0, 1].sum(-1), torch.ones(()), atol=1e-5)


def test_self_attention_s_keys_can_be_hidden_too(tiny):
    keys = torch.zeros(1, 64, dtype=torch.bool)
    keys[:, 5] = True
    reader = Patterns([(1, 0), (1, 1)], "self")
    forward(tiny, MaskKeys(keys, [(1, 0)], kind="self"), reader)
    assert not reader.maps[1, 0][..., 5].any() and reader.maps[1, 1][..., 5].all()


# ---- patches

@pytest.mark.parametrize("stage", ALL_STAGES)
def test_patching_from_itself_changes_nothing(tiny, stage):
    assert close(forward(tiny, Patch(torch.arange(2), stage=stage)), forward(tiny))


def test_all_outputs_of_another_prompt_give_its_prediction(tiny):
    plain = forward(tiny)
    assert close(forward(tiny, Patch(torch.tensor([1, 1]))), plain[[1, 1]])
    assert differ(plain[0], plain[1])


@pytest.mark.parametrize("first, second, whole",
                         [("pattern", "value", "output"), ("query", "key", "pattern")])
def test_two_stages_make_up_the_next(tiny, first, second, whole):
    source, where = torch.tensor([1, 1]), [(0, 1), (1, 0)]
    wanted = forward(tiny, Patch(source, where, whole), seeds=[3, 4])
    parts = [forward(tiny, Patch(source, where, s), seeds=[3, 4]) for s in (first, second)]
    assert close(forward(tiny, Patch(source, where, first), Patch(source, where, second),
                         seeds=[3, 4]), wanted)
    assert all(differ(p, wanted) for p in parts)


@pytest.mark.parametrize("stage, name", [("query", "to_q"), ("key", "to_k"), ("value", "to_v")])
def test_a_patched_projection_is_another_sample_s(tiny, stage, name):
    def change(out):
        out = out.clone()
        out[0, :, columns(1)] = out[1, :, columns(1)]
        return out
    with altered(getattr(tiny.transformer.transformer_blocks[1].attn2, name), change):
        wanted = forward(tiny, seeds=[3, 4])
    found = forward(tiny, Patch(torch.tensor([1, 1]), [(1, 1)], stage), seeds=[3, 4])
    assert close(found, wanted) and differ(found[0], forward(tiny, seeds=[3, 4])[0])


@pytest.mark.parametrize("stage, add, shape", [
    ("query", False, (1, 1, 64, D)), ("query", True, (2, 1, 1, D)), ("key", True, (2, 2, 7, D)),
    ("value", False, (2, 1, 7, D))])
def test_a_replaced_projection_is_the_given_tensor(tiny, stage, add, shape):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def change(out):
        out = out.unflatten(-1, (2, D)).transpose(1, 2).clone()  # [B, H, N or T, d]
        out[:, 1] = (out[:, 1] if add else 0) + value[:, -1]
        return out.transpose(1, 2).flatten(2)
    with altered(getattr(tiny.transformer.transformer_blocks[0].attn2, f"to_{stage[0]}"), change):
        wanted = forward(tiny)
    found = forward(tiny, Replace(value, [(0, 1)], stage, add))
    assert close(found, wanted) and differ(found, forward(tiny))


def test_a_replaced_output_and_pattern_are_the_given_tensors(tiny):
    assert close(forward(tiny, Replace(torch.zeros(1, 1, 1, 1), [(0, 1)])),
                 forward(tiny, Ablate([(0, 1)])))
    one = torch.zeros(1, 1, 1, 7)
    one[..., 2] = 1  # all attention on token 2
    outputs = MeanOutputs()
    found = forward(tiny, Replace(one, [(1, 0)], "pattern"), outputs)
    with recorded(tiny.transformer) as seen:
        plain = forward(tiny)
    value = seen[1, "attn2", "to_v"][0][:, 2, columns(0)].mean(0)
    assert close(outputs.mean[0, 1, 1, 0], value.expand(64, -1)) and differ(found, plain)
    same = forward(tiny, Replace(torch.zeros(1, 1, 1, 1), [(1, 0)], "pattern", add=True))
    assert close(same, plain)


# ---- the residual stream

def test_a_vector_added_before_layer_0_is_a_change_of_the_position_embedding(tiny):
    vector = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(tiny.transformer)
    model.pos_embed.pos_embed += vector
    found = forward(tiny, AddResidual(vector))
    assert close(found, forward(tiny, model=model)) and differ(found, forward(tiny))
    prompts = ["", PAIR[0]]
    # the conditional branch alone
    found = forward(tiny, AddResidual(vector), prompts=prompts, branches=("uncond", "cond"))
    assert torch.equal(found[0], forward(tiny, prompts=prompts)[0])
    assert close(found[1], forward(tiny, model=model, prompts=prompts)[1])


@pytest.mark.parametrize("layer", [1, 2])
def test_a_vector_is_added_where_a_layer_receives_the_stream(tiny, layer):
    vector = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    module = [*tiny.transformer.transformer_blocks, tiny.transformer.norm_out][layer]
    with altered(module, lambda x: x + vector, before=True):
        wanted = forward(tiny)
    found = forward(tiny, AddResidual(vector, layer))
    assert close(found, wanted) and differ(found, forward(tiny))


def test_the_stream_before_layer_0_is_all_a_sample_knows_of_its_noise(tiny):
    found = forward(tiny, PatchResidual(torch.tensor([1, 1]), 0), prompts=["", "", *PAIR],
                    seeds=[5, 6, 5, 6], branches=("uncond", "cond"))
    assert close(found, forward(tiny, prompts=["", "", *PAIR], seeds=[6, 6, 6, 6]))


def test_the_stream_can_be_taken_at_some_image_tokens(tiny):
    tokens, reader = torch.arange(64) < 10, Residual(1)
    found = forward(tiny, PatchResidual(torch.tensor([1, 1]), 1, tokens), reader, seeds=[5, 6])
    plain = Residual(1)
    forward(tiny, plain, seeds=[5, 6])
    own, other = plain.values[:, 0]
    assert torch.equal(reader.values[0, 0], torch.where(tokens[:, None], other, own))
    assert torch.equal(reader.values[1, 0], other) and differ(found[0],
                                                              forward(tiny, seeds=[5, 6])[0])


# ---- paths

def path_change(tiny, sender, seeds):
    """[B, N, 16]: by how much the sender's write differs from that of the other sample."""
    with recorded(tiny.transformer) as seen:
        forward(tiny, seeds=seeds)
    layer, head = sender
    own = seen[layer, "attn2", "to_out"][0][..., columns(head)]
    weight = tiny.transformer.transformer_blocks[layer].attn2.to_out[0].weight
    return (own.flip(0) - own) @ weight[:, columns(head)].T


def test_a_straight_path_moves_the_receiver_s_query_alone(tiny):
    change, attn = path_change(tiny, (0, 1), [3, 4]), tiny.transformer.transformer_blocks[1].attn2
    moved = change @ attn.to_q.weight.T
    moved[..., columns(1)] = 0  # the receiver is head 0
    with altered(attn.to_q, lambda out: out + moved):
        wanted = forward(tiny, seeds=[3, 4])
    plain = forward(tiny, seeds=[3, 4])
    found = forward(tiny, PathPatch((0, 1), [(1, 0)], torch.tensor([1, 0])), seeds=[3, 4])
    assert close(found, wanted) and all(differ(a, b) for a, b in zip(found, plain, strict=True))
    one = forward(tiny, PathPatch((0, 1), [(1, 0)], torch.tensor([1, 0]),
                                  torch.tensor([True, False])), seeds=[3, 4])
    assert close(one, torch.stack([wanted[0], plain[1]]))


def test_paths_of_two_senders_add_up(tiny):
    attn = tiny.transformer.transformer_blocks[1].attn2
    change = sum(path_change(tiny, (0, h), [3, 4]) for h in range(2)) @ attn.to_q.weight.T
    with altered(attn.to_q, lambda out: out + change):
        wanted = forward(tiny, seeds=[3, 4])
    found = forward(tiny, *(PathPatch((0, h), [(1, 0), (1, 1)], torch.tensor([1, 0]))
                            for h in range(2)), seeds=[3, 4])
    assert close(found, wanted)


# ---- together, sample by sample, step by step

def test_edits_compose(tiny):
    keys = torch.arange(7)[None] == 3
    mask = tiny.encoder.encode(PAIR).mask & ~keys
    vector = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    model = without(tiny.transformer, (0, 1))
    model.pos_embed.pos_embed += vector
    edits = [MaskKeys(keys), AddResidual(vector), Ablate([(0, 1)])]
    wanted = forward(tiny, model=model, mask=mask)
    for order in (edits, edits[::-1]):
        assert close(forward(tiny, *order), wanted)
    put, add = Replace(torch.zeros(1, 1, 1, 1), [(0, 1)]), Replace(torch.ones(1, 1, 1, 1), [(0, 1)],
                                                                   add=True)
    ones = forward(tiny, Replace(torch.ones(1, 1, 1, 1), [(0, 1)]))
    assert close(forward(tiny, put, add), ones)  # one stage: as given
    assert close(forward(tiny, add, put),
                 forward(tiny, Ablate([(0, 1)]))) and differ(ones, forward(tiny, Ablate([(0, 1)])))


PER_SAMPLE = {
    "heads": lambda i: Ablate(torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1],
                                            [0, 0, 1, 0]]).bool().view(4, 2, 2)[i]),
    "steps": lambda i: Ablate([(0, 0), (1, 1)],
                              steps=torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0]]).bool()[i]),
    "keys": lambda i: MaskKeys(torch.eye(10).bool()[:4][i], [(0, 0)]),
    "value": lambda i: Replace(torch.arange(1.0, 5).view(4, 1, 1, 1)[i], [(1, 0)], "query",
                               add=True),
    "stream": lambda i: AddResidual(torch.arange(1.0, 5).view(4, 1, 1).expand(4, 1, 16)[i]),
}


@pytest.mark.parametrize("kind", PER_SAMPLE)
def test_each_sample_s_own_edit_is_as_if_it_ran_alone(tiny, kind):
    seeds, long = [3, 4, 5, 6], PROMPTS[1]  # the longest prompt keeps the number of tokens
    plain, found = tiny.latents(PROMPTS, seeds, steps=2), run(tiny, PROMPTS, seeds,
                                                              PER_SAMPLE[kind](slice(None)),
                                                              steps=2)
    for i, prompt in enumerate(PROMPTS):
        alone = run(tiny, [prompt, long], [seeds[i], 0], PER_SAMPLE[kind](slice(i, i + 1)), steps=2)
        assert close(alone[0], found[i]) and differ(found[i], plain[i])


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("kind", PER_SAMPLE)
def test_batches_do_not_matter(tiny, kind, batch):
    assert close(latents(tiny, PER_SAMPLE[kind](slice(None)), batch=batch),
                 latents(tiny, PER_SAMPLE[kind](slice(None))))


@pytest.mark.parametrize("hook", [lambda: Patch(torch.tensor([1, 0, 3, 2])),
                                  lambda: PatchResidual(torch.tensor([1, 0, 3, 2]), 1),
                                  lambda: PathPatch((0, 0), [(1, 1)], torch.tensor([1, 0, 3, 2]))])
def test_patches_find_their_source_in_every_batch(tiny, hook):
    prompts, seeds = [*PAIR, PROMPTS[1], PAIR[0]], range(4)
    whole = run(tiny, prompts, seeds, hook(), steps=2)
    assert close(run(tiny, prompts, seeds, hook(), steps=2, batch=2), whole)
    assert all(differ(a, b) for a,
               b in zip(whole, tiny.latents(prompts, seeds, steps=2), strict=True))


def test_an_edit_keeps_to_its_steps(tiny):
    seen = {}
    for steps in ((), (0,), (1,), (2,), (1, 2)):
        trace = seen[steps] = []
        hooks = [Ablate(None, steps=list(steps))] if steps else []
        latents(tiny, *hooks, steps=3, on_step=lambda i, x, trace=trace: trace.append(x))
    plain = seen[()]
    for steps, trace in seen.items():
        same = [torch.equal(a, b) for a, b in zip(trace, plain, strict=True)]
        assert same == [i < min(steps, default=3) for i in range(3)]
    assert torch.equal(seen[1,][1], seen[1, 2][1]) and differ(seen[1,][2], seen[1, 2][2])
    as_tensor = Ablate(None, steps=torch.tensor([[False, True, True]]))
    assert torch.equal(latents(tiny, as_tensor, steps=3), seen[1, 2][2])


# ---- what is refused

@pytest.mark.parametrize("hook, name", [
    (lambda: Ablate([(0, 0)], steps=[1]), "Ablate"),
    (lambda: AddResidual(torch.ones(16), steps=[2]), "AddResidual"),
    (lambda: Ablate([]), "Ablate"),
    (lambda: MaskKeys(torch.eye(7).bool()[:1], branch="uncond"), "MaskKeys"),
    (lambda: PathPatch((0, 0), [(1, 0)], torch.tensor([1, 0]), steps=[1]), "PathPatch"),
    (lambda: Patterns([(0, 0)], steps=[3]), "Patterns"),
])
def test_a_hook_that_never_acts_is_an_error(tiny, hook, name):
    with pytest.raises(RuntimeError,
                       match=f"{name} never acted: no forward ran, or none at its layers"):
        forward(tiny, Ablate([(0, 1)]), hook())  # one forward, the conditional branch


def test_a_context_without_a_forward_is_an_error(tiny):
    with pytest.raises(RuntimeError, match="Patterns never acted"), hooked(tiny.transformer,
                                                                           Patterns([(0, 0)])):
        pass
    with pytest.raises(RuntimeError, match="Ablate never acted"):
        latents(tiny, Ablate(torch.zeros(4, 2, 2, dtype=torch.bool)))


@pytest.fixture
def counted(tiny):
    """Counts forwards of the model in a list."""
    calls = []
    handle = tiny.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@pytest.mark.parametrize("hook, message", [
    (lambda: Ablate([(2, 0)]), "layer 2 is out of range; the model has layers 0 to 1"),
    (lambda: Patterns([(-1, 0)]), "layer -1 is out of range"),
    (lambda: Ablate([(1, 2)]), "head 2 is out of range; the model has heads 0 to 1 in each layer"),
    (lambda: AddResidual(torch.ones(16), 3),
     "layer 3 is out of range; the model has layers 0 to 2"),
    (lambda: Ablate(torch.ones(4, 3, 2).bool()),
     r"bool tensor \[samples, 2, 2\], got torch.bool \(4, 3, 2\)"),
    (lambda: Ablate(torch.ones(4, 2, 2)), r"got torch.float32 \(4, 2, 2\)"),
    (lambda: Ablate(torch.ones(4, 2).bool()), r"got torch.bool \(4, 2\)"),
    (lambda: Ablate(None, steps=[2]), "Ablate acts at step 2; the run has steps 0 to 1"),
    (lambda: Ablate(None, steps=[-1]), "step -1 is not a whole number of at least 0"),
    (lambda: Ablate(None, steps=[0.5]), "step 0.5 is not a whole number"),
    (lambda: Ablate(None, steps=torch.ones(4, 3).bool()),
     "acts at step 2; the run has steps 0 to 1"),
    (lambda: Ablate(None, steps=torch.ones(4, 1).bool()),
     "acts at step 0; the run has steps 0 to 1"),
    (lambda: Ablate(torch.ones(3, 2, 2).bool()),
     "Ablate describes 3 samples but 4 are to be drawn"),
    (lambda: MaskKeys(torch.zeros(5, 10).bool()), "MaskKeys describes 5 samples but 4"),
    (lambda: PathPatch((0, 0), [(1, 0)], torch.tensor([1, 0])),
     "PathPatch describes 2 samples but 4"),
    (lambda: Patch(torch.arange(4), torch.ones(3, 2, 2).bool()), "Patch describes .* samples"),
    (lambda: PathPatch((1, 0), [(1, 1)], torch.arange(4)),
     "a receiver in layer 1 cannot see the sender in layer 1"),
    (lambda: PathPatch((0, 2), [(1, 1)], torch.arange(4)), "head 2 is out of range"),
    (lambda: Ablate(None, branch="both branches"),
     "branch 'both branches' is unknown; choose from cond, uncond, both"),
    (lambda: Patterns([(0, 0)], branch="both"),
     "branch 'both' is unknown or not one; choose from uncond, cond"),
    (lambda: MeanResidual(branch="both"), "branch 'both'"),
    (lambda: Residual(0, branch="both"), "branch 'both'"),
    (lambda: Ablate(None, kind="mlp"), "kind 'mlp' is unknown; choose from cross, self, residual"),
    (lambda: Ablate([(0, 0)], kind="residual"),
     "Ablate acts on attention, not on the residual stream"),
    (lambda: Patch(torch.arange(4), stage="mask"),
     "stage 'mask' cannot be patched; choose from query, key, pattern, value, output"),
    (lambda: Replace(torch.ones(1, 1, 1, 1), stage="out"), "stage 'out' cannot be patched"),
])
def test_wrong_values_are_refused_before_any_forward(tiny, counted, hook, message):
    before = state(tiny.transformer)
    with pytest.raises(ValueError, match=message):
        latents(tiny, MeanOutputs(), hook())
    assert not counted and state(tiny.transformer) == before


def test_a_hook_of_two_sizes_is_refused(tiny, counted):
    with pytest.raises(ValueError, match="Patch describes now 3 now 4 samples"), \
            hooked(tiny.transformer, Patch(torch.arange(4), torch.ones(3, 2, 2).bool())):
        pass


def test_what_shows_only_in_a_run_is_refused_there(tiny):
    before = state(tiny.transformer)
    with pytest.raises(ValueError,
                       match="takes from sample 3, which is not in its batch of samples 0 to 1"):
        latents(tiny, Patch(torch.tensor([0, 3, 2, 1])), batch=2)
    with pytest.raises(ValueError,
                       match="takes from sample 1, which is not in its batch of samples 2 to 3"):
        latents(tiny, PatchResidual(torch.tensor([0, 1, 2, 1]), 1), batch=2)
    with pytest.raises(ValueError, match="all tokens of a prompt are hidden; leave at least one"):
        latents(tiny, MaskKeys(torch.ones(1, 10).bool()))
    with pytest.raises(ValueError, match="describes 2 samples but the run has more"), \
            hooked(tiny.transformer, Ablate(torch.ones(2, 2, 2).bool())):
        tiny.latents(PROMPTS, range(4), steps=1)
    with pytest.raises(ValueError, match="a batch of 3 rows does not consist of 2 branches"):
        forward(tiny, prompts=PROMPTS[:3], branches=("uncond", "cond"))
    assert state(tiny.transformer) == before


def test_a_model_without_cross_attention_is_refused_by_name(tiny, lively):
    model = lively()
    model.transformer_blocks[1].attn2 = None
    before = state(model)
    for hook in (Ablate([(0, 0)]), Patterns([(0, 0)]), MeanOutputs()):
        with pytest.raises(ValueError, match="no cross-attention in some block; cross-attention "
                           "hooks"), hooked(model, hook):
            pass
    assert state(model) == before
    with pytest.raises(ValueError,
                       match="Linear is no diffusers transformer with blocks"), \
            hooked(nn.Linear(2, 2)):
        pass
