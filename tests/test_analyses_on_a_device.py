"""Every analysis of a model on another device: the same numbers, on the CPU, nothing mixed."""
import copy
import inspect
import pkgutil
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch

from spatial_circuits import analyses
from spatial_circuits.analyses import (
    ablation,
    arithmetic,
    attribution,
    carriers,
    chunks,
    circuit,
    costs,
    curves,
    edges,
    edit_files,
    evaluation,
    exact_edges,
    factors,
    fused,
    heads,
    heatmap,
    injection,
    locate,
    patching,
    placed,
    placed_injection,
    predicted,
    repair,
    robustness,
    screening,
    second_judge,
    self_check,
    subspaces,
    sweep,
    synopsis,
    token_exchange,
    token_shares,
    weight_maps,
    wires,
)
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.text.counterparts import counterpart, relations_said

fake = pytest.importorskip("fake_device")
PROMPTS = prompt_set("264")[:22]
TOLD = "red square is above blue circle"
HELPERS = {"snapshots", "model_bytes", "edit_hooks",     # read files, count, make hooks for `under_edits`
           "asked", "judge_pictures", "check_when", "check_edits"}            # of what the placed analyses consist
pytestmark = pytest.mark.usefixtures("one_thread")


def weights(model):
    t, encoder, few = model.transformer, model.encoder, PROMPTS[:3]
    text = weight_maps.project_captions(t, encoder.encode(few).embeddings)
    keys, pattern = weight_maps.shape_keys(t, encoder, few), torch.rand(3, 64, text.shape[1])
    writes = weight_maps.head_writes(t, text, pattern, (1, 0))
    v = factors.token_vectors(encoder, few, "shape2", t)
    yield from (text, keys, writes, v, weight_maps.positions(t), weight_maps.queries(t, writes[0]))
    yield weight_maps.logit_shift(t, writes, keys, (1, 1))
    yield weight_maps.qk_composition(t, writes[0], keys[0])
    yield from weight_maps.spectra(t).values()
    yield from weight_maps.cross_weights(t).values()
    yield from weight_maps.words(t, encoder, PROMPTS).values()
    yield from (weight_maps.qk_maps(t, v[:2]), weight_maps.ov(t, v[:2]))
    assert weight_maps.token_grid(t) == (8, 8)
    yield weight_maps.screen_words(t, encoder, PROMPTS)
    vectors = factors.token_vectors(encoder, PROMPTS, "relation", t)
    found = factors.partition(vectors, {"relation": factors.labels(PROMPTS)["relation"]}, 2)
    effects = factors.relation_effects(found)
    yield factors.screen_effects(t, effects, 5)
    yield robustness.shifted_ramps(t, effects, vectors[0])
    moved = robustness.shifts(encoder, PROMPTS, "T3 the", "shape2", t)
    yield robustness.alignment(moved, effects, vectors, 20)


def injected(model):
    stream = injection.mean_residual(model, PROMPTS[:2], steps=1)
    vectors = injection.relation_vectors(model, PROMPTS[:8], [(0, 1), (1, 0)], steps=1)[:, 0]
    yield from (stream, vectors, injection.patterns_on_residual(model, PROMPTS[:2], stream[1], 1))
    yield injection.injected_patterns(model, PROMPTS[:8], stream[1], vectors, (1, 0), [0, 1])
    yield injection.steer(model, PROMPTS[:1], [1], vectors, [1], steps=1)


def worded(model):
    deltas = torch.ones(8, 128)
    yield arithmetic.arithmetic(model, PROMPTS[:1], deltas, [1.0], steps=1, control=False)
    donor = counterpart(PROMPTS[0], "relation")
    yield arithmetic.interchange_token(model, PROMPTS[:1], [donor], "shape2", steps=1)
    yield robustness.robustness(model, PROMPTS[:1], ["T0", "T3 the"], steps=1)
    yield token_exchange.exchange_tokens(model, PROMPTS[:1], ["relation"], steps=1)
    asked = token_shares.TokenShares(model.encoder, model.vae, model.noise, ["relation"], count=4)
    yield asked.of(model.transformer)
    calibration = PROMPTS[4:]
    yield repair.repair(model, PROMPTS[:1], "T3 the", calibration, ["shift", "hide"], steps=1)


def scored(model):
    yield evaluation.evaluate(model, [TOLD], 2, steps=1)
    yield evaluation.vae_ceiling(model, [TOLD])
    yield second_judge.sampled_agreement(model, [TOLD], [0])
    yield sweep.sweep(model, [TOLD], ["intact"], steps=1)
    mean = ablation.mean_outputs(model, [TOLD], steps=1)
    yield mean
    yield ablation.ablate(model, [TOLD], {"one": [(0, 1)]}, mean=mean, steps=1)
    yield ablation.mask_roles(model, [TOLD], {"word": ("relation", None)}, steps=1)
    yield ablation.greedy_ablation(model, [TOLD], candidates=[(0, 0), (1, 1)], rounds=1, steps=1)
    found = synopsis.synopsis(model, [TOLD], 1, steps=1)
    yield from (found.sum, found.share, found.peak, found.images)


def patched(model):
    one = {"one": [(0, 1)]}
    yield patching.patch(model, [TOLD], "relation", one, steps=1)
    for straight in (False, True):
        yield patching.patch_paths(model, [TOLD], "relation", one, [(1, 0)], straight=straight,
                                   steps=1)
    yield patching.clean_trace(model, [TOLD], steps=2, seed=1)[1][1]
    yield patching.prediction_effects(model, [TOLD], "relation", one, steps=2)
    yield patching.query_shares(model, [TOLD], "relation", [(0, 1)], (1, 0))
    found = attribution.attribute(model, [TOLD], "relation", steps=1)
    assert list(found) == attribution.components(model)
    yield found
    yield patching.greedy_patching(model, [TOLD], "shape", limit=1, steps=2)
    basis = subspaces.learn_subspace(model, [TOLD], (1, 0), 1, iterations=2, steps=2)
    yield basis.abs()
    yield subspaces.mean_difference_subspace(model, [TOLD], "relation", 1).abs()
    yield subspaces.subspace_effects(model, [TOLD], (1, 0), {"one": basis, "all": None}, steps=2)
    assert subspaces.site_size(model, (1, 0)) == len(basis)
    yield subspaces.subspace_pictures(model, [TOLD], (1, 0), {"one": basis}, steps=2)


def circuits(model):
    parts = circuit.find_circuit(model, [TOLD], limit=1, steps=2)
    yield parts.trace
    yield circuit.heads_by_attention(model, [TOLD], steps=1)[2]
    yield circuit.tests(model, [TOLD], parts.heads, random=1, steps=1)
    yield circuit.prune(model, [TOLD], parts.heads, steps=1)
    orders = curves.random_orders(model, 1)
    yield curves.keep_and_remove(model, [TOLD], orders, [2], "resample", steps=1)
    with pytest.raises(ValueError, match="there is nothing that a circuit could keep"):
        curves.minimality(model, [TOLD], [(0, 1)], "zero", steps=1)
    found = curves.rankings(model, [TOLD], steps=2)
    yield torch.tensor(found["patching"])


def wired(model):
    few, options = PROMPTS[:2], {"steps": 2, "every": 2}
    found = edges.edge_attribution(model, few, draws=2, **options).drop(columns=["z", "null", "p"])
    yield found.sort_values(["sender", "receiver"], ignore_index=True)
    chosen = [("L0H0", "L1S0.q"), ("L0MLP", "L1H1.q"), ("text relation", "L0H1.k"), ("L0H1", "L1MLP"), ("L1H0", "picture")]
    yield exact_edges.exact_edges(model, few, chosen, **options)
    table = pd.DataFrame(chosen, columns=["sender", "receiver"]).assign(score=range(5), alone=range(5))
    yield exact_edges.check_edges(model, few, table, 3, **options)[0]
    assert wires.senders(model)[0] == "L0S0"
    with wires.watched(model) as (opened, session):
        pairs = edges.paired(model, few, "relation", None, 2, 2, 1)
        number, latents, time = pairs.trace[0]
        pairs.run(number, session, latents, time, pairs.clean)
        yield opened.writes().cpu()
    relation, reader = [(0, 1)], (1, 0)
    assert carriers.between(model, relation, reader) == ["L0MLP", "L1S0", "L1S1"]
    yield carriers.tags(model, few, relation, reader, {"": [], "MLP": ["L0MLP"]}, **options)
    yield carriers.ways(model, few, relation, reader, **options)
    yield carriers.carriers(model, few, relation, reader, limit=1, **options)[["left"]]
    yield pd.DataFrame([carriers.removal(model, few, relation, reader, ["L1S0"], **options)])
    given = token_exchange.donors(few)["opposite"]
    assert fused.doubled(model, few, given, "relation").mine.any()
    yield fused.reading_effects(model, few, given, "relation", {"one": [(0, 1)]}, **options)
    yield fused.find_readers(model, few, "relation", limit=1, **options)
    yield fused.shared_roles(model, few, [(0, 1)], **options)
    yield fused.turn_pictures(model, few[:1], "relation", [(0, 1)], 1, steps=1)


def anywhere(model):
    found = heatmap.heatmap(model, TOLD, "above", steps=1)
    yield from (found.maps, found.picture)
    checked = self_check.self_check(model, steps=1)
    assert checked.passed and checked.memory["heatmap"] > 0 and checked.rate > 0
    assert costs.sizes_of(model).places == 64
    assert len(chunks.model_identity(model)["transformer"]) == 64
    silent = edit_files.under_edits(model, [edit_files.EditSpec("hide", ["L0H1"], ["above"])])
    yield silent.latents([TOLD], [0], steps=1).cpu()
    yield placed.placed_ablation(model, [TOLD], {"one": [(0, 1)]}, locate.by_detector, steps=1)
    yield placed.placed_synopsis(model, [TOLD], locate.by_detector, steps=1)
    yield placed_injection.relation_means(model, [TOLD], [(0, 1)], early=1, steps=1)["above"]
    yield placed_injection.placed_injection(model, [TOLD], [(0, 1)], locate.by_detector, early=1, steps=1,
                                            means_from=["blue square is above red circle"])
    yield predicted.calls(model, [TOLD, counterpart(TOLD, "relation")], 0, steps=1)[0].latents.cpu()
    yield predicted.patched_predictions(model, [TOLD], steps=1)
    yield screening.word_means(model, [TOLD])["above"]
    yield screening.screen_layers(model, PROMPTS)


class Draughtsman:
    """In place of a VAE: draws the scene that TOLD tells, whatever the latents."""

    def __init__(self):
        shape, colour = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
        relation = torch.tensor(relations_said([TOLD]))
        self.picture = render(sample_scenes(torch.tensor([0]), 0, relation=relation, shape=shape,
                                            color=colour))

    def encode(self, images):
        return torch.zeros(len(images), 4, 16, 16)

    def tensors(self):
        return {"picture": self.picture}

    def decode(self, latents):
        return self.picture.expand(len(latents), -1, -1, -1)


@pytest.mark.parametrize("analyses", [weights, injected, worded, scored, patched, circuits, wired, anywhere])
def test_another_device_gives_the_same_on_the_cpu(tiny, analyses):
    torch.manual_seed(0)
    wanted = list(analyses(replace(tiny, vae=Draughtsman())))
    with fake.fake_device() as device:
        net = replace(tiny, vae=Draughtsman(),
                      transformer=copy.deepcopy(tiny.transformer).to(device))
        torch.manual_seed(0)
        found = list(analyses(net))
    assert len(wanted) == len(found) > 3
    for ours, theirs in zip(found, wanted, strict=True):
        if isinstance(theirs, pd.DataFrame):
            pd.testing.assert_frame_equal(ours, theirs, atol=1e-4)
        else:
            assert ours.device.type == "cpu" and torch.allclose(ours, theirs, 1e-4, 1e-5)


def test_no_analysis_is_left_out():
    modules = [import_module(f"{analyses.__name__}.{m.name}")
               for m in pkgutil.iter_modules(analyses.__path__)]
    public = {name for module in modules for name, function in vars(module).items()
              if inspect.isfunction(function) and function.__module__ == module.__name__
              and not name.startswith("_") and module is not heads
              and "model" in inspect.signature(function).parameters}
    called = set(re.findall(r"\b\w+\.(\w+)\((?:model|t)\b", Path(__file__).read_text()))
    assert public - called - HELPERS == set()
