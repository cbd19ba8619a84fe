"""Contexts of hooks: nested, in threads, with steps and branches that are told, on devices."""
import copy
import threading
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMInverseScheduler, HeunDiscreteScheduler, PNDMScheduler
from fake_device import fake_device, waits

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

PROMPTS = ["red square is above blue circle", "circle is left of square",
           "red square is below blue circle"]
HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]
pytestmark = pytest.mark.usefixtures("one_thread")


def state(model):
    return ([id(p) for p in model.attn_processors.values()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()])


def draw(net, steps=2, **options):
    return net.latents(PROMPTS, range(3), steps=steps, **options)


@pytest.fixture
def by_hand(tiny):
    """A function (time, prompts) -> one conditional prediction, called by hand."""
    def call(time, prompts=PROMPTS, model=None):
        text = tiny.encoder.encode(prompts)
        with torch.no_grad():
            return predict(model or tiny.transformer, initial_noise(range(len(prompts))),
                           torch.full((len(prompts),), float(time)), text.embeddings, text.mask)
    return call


# ---- contexts

def halves():
    """Outer and inner hooks of a nested context, and the readers among them."""
    value = torch.full((1, 1, 1, 1), 0.5)
    outer = [Replace(value, [(0, 1)]), AddResidual(torch.full((16,), 3.0), 1), MeanOutputs()]
    inner = [Replace(value, None, add=True), PatchResidual(torch.tensor([1, 0, 2]), 1),
             Patterns(HEADS), Residual(1)]
    return outer, inner


def test_a_context_in_a_context_is_one_with_the_hooks_of_both(tiny):
    before = state(tiny.transformer)
    (outer, inner), (first, second) = halves(), halves()
    with hooked(tiny.transformer, *outer), hooked(tiny.transformer, *inner):
        nested = draw(tiny)
    with hooked(tiny.transformer, *first, *second):
        flat = draw(tiny)
    assert torch.equal(nested, flat) and not torch.equal(nested, draw(tiny))
    assert torch.equal(outer[2].mean, first[2].mean)
    assert torch.equal(inner[2].maps[1, 0], second[2].maps[1, 0])
    assert torch.equal(inner[3].values, second[3].values) and inner[3].values.mean() > 1
    assert state(tiny.transformer) == before


def test_a_reader_inside_does_not_undo_the_edit_around_it(tiny):
    with hooked(tiny.transformer, Ablate(None)):
        alone = draw(tiny)
        with hooked(tiny.transformer, Patterns([(1, 1)])):
            assert torch.equal(draw(tiny), alone)
        with hooked(tiny.transformer, MeanOutputs()):
            assert torch.equal(draw(tiny), alone)
        assert torch.equal(draw(tiny), alone)
    assert (alone - draw(tiny)).abs().max() > 1e-2


def test_contexts_may_close_in_any_order(tiny):
    before, plain = state(tiny.transformer), draw(tiny)
    first, second = hooked(tiny.transformer, Ablate([(0, 0)])), hooked(tiny.transformer,
                                                                       Ablate([(1, 1)]))
    first.__enter__(), second.__enter__()
    both = draw(tiny)
    first.__exit__(None, None, None)
    left = draw(tiny)
    second.__exit__(None, None, None)
    assert state(tiny.transformer) == before and torch.equal(draw(tiny), plain)
    assert torch.equal(left, run(tiny, PROMPTS, range(3), Ablate([(1, 1)]), steps=2))
    assert torch.equal(both, run(tiny, PROMPTS, range(3), Ablate([(0, 0), (1, 1)]), steps=2))


def test_an_exception_inside_two_contexts_restores_the_model(tiny):
    class Broken(Reader):
        def read(self, call):
            raise KeyError("broken")
    before, plain, edit = state(tiny.transformer), draw(tiny), Ablate(None)
    with hooked(tiny.transformer, edit):
        alone = draw(tiny)
        with pytest.raises(KeyError), hooked(tiny.transformer, Broken(),
                                             AddResidual(torch.ones(16))):
            draw(tiny)
        assert torch.equal(draw(tiny), alone)
    assert state(tiny.transformer) == before and torch.equal(draw(tiny), plain)
    with hooked(tiny.transformer, edit):                                    # free again
        assert torch.equal(draw(tiny), alone)


def test_each_thread_has_contexts_of_its_own(tiny):
    before, plain, found = state(tiny.transformer), draw(tiny), {}
    wanted = run(tiny, PROMPTS, range(3), Ablate([(1, 0)]), steps=2)
    here, there = threading.Event(), threading.Event()

    def other():
        found["plain"] = draw(tiny)
        with hooked(tiny.transformer, Ablate([(1, 0)])):
            there.set()
            here.wait(30)
            found["edited"] = draw(tiny)
    thread = threading.Thread(target=other)
    with hooked(tiny.transformer, Ablate(None)):
        thread.start()
        there.wait(30)
        found["mine"] = draw(tiny)
    here.set()                                                              # it closes last
    thread.join()
    assert state(tiny.transformer) == before and torch.equal(draw(tiny), plain)
    assert torch.equal(found["plain"], plain) and torch.equal(found["edited"], wanted)
    assert torch.equal(found["mine"], run(tiny, PROMPTS, range(3), Ablate(None), steps=2))


def test_a_hook_is_in_one_context_at_a_time(tiny):
    edit, before = Ablate(None), state(tiny.transformer)
    with hooked(tiny.transformer, edit):
        with pytest.raises(ValueError, match="Ablate is in an open context already"), \
                hooked(tiny.transformer, edit):
            pass
        draw(tiny)
    with pytest.raises(ValueError, match="Ablate is in an open context already"), \
            hooked(tiny.transformer, edit, edit):
        pass
    assert state(tiny.transformer) == before


READERS = {"patterns": (lambda: Patterns(HEADS), lambda r: r.maps[1, 1]),
           "outputs": (MeanOutputs, lambda r: r.mean), "inputs": (MeanResidual, lambda r: r.mean),
           "stream": (lambda: Residual(1), lambda r: r.values)}


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_used_again_starts_afresh(tiny, kind):
    make, value = READERS[kind]
    reader, fresh = make(), make()
    run(tiny, PROMPTS[:2], [5, 6], reader, steps=3)
    run(tiny, PROMPTS, range(3), reader, steps=2)
    run(tiny, PROMPTS, range(3), fresh, steps=2)
    assert torch.equal(value(reader), value(fresh))


def test_rows_for_samples_are_for_one_run(tiny):
    edit = Ablate(torch.ones(3, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="3 samples of one run; open one context for each run"), \
            hooked(tiny.transformer, edit):
        draw(tiny)
        draw(tiny)
    for _ in range(2):
        with hooked(tiny.transformer, edit):
            draw(tiny)


# ---- told, not guessed

@pytest.mark.parametrize("times", [[999, 750, 750, 500, 500, 250], [100, 400, 700, 999], [5, 5, 5]])
def test_steps_are_those_told_whatever_the_times(tiny, by_hand, times):
    patterns, stream, outputs = Patterns([(1, 0)]), Residual(1), MeanOutputs()
    edit = Ablate([(0, 0)], steps=[2])
    predictions = []
    with hooked(tiny.transformer, patterns, stream, outputs, edit) as session:
        for step, time in enumerate(times):
            session.at(step, ("cond",))
            predictions.append(by_hand(time))
    assert patterns.maps[1, 0].shape == (3, len(times), 64, 7)
    assert stream.values.shape == (3, len(times), 64, 16) and len(outputs.mean) == len(times)
    assert outputs.mean[:, 0].isnan().all() and outputs.mean[:, 1].isfinite().all()
    for step, (time, found) in enumerate(zip(times, predictions, strict=True)):
        assert torch.equal(found, by_hand(time)) == (step != 2)


@pytest.mark.parametrize("kind, evaluations", [(HeunDiscreteScheduler, 5), (PNDMScheduler, 13),
                                               (DDIMInverseScheduler, 3)])
def test_any_solver_s_evaluations_are_steps(tiny, kind, evaluations):
    net = replace(tiny, scheduler=kind())
    patterns = Patterns([(1, 0)])
    found = run(net, PROMPTS, range(3), patterns, steps=3 if evaluations < 13 else 4, batch=2)
    assert patterns.maps[1, 0].shape[:2] == (3, evaluations) and found.isfinite().all()
    with pytest.raises(ValueError, match=f"the run has steps 0 to {evaluations - 1}"):
        run(net, PROMPTS, range(3), Ablate(None, steps=[evaluations]),
            steps=3 if evaluations < 13 else 4)


@pytest.mark.parametrize("batch", [1, 2, 128])
def test_without_guidance_there_is_one_branch(tiny, batch):
    patterns, outputs = Patterns(HEADS), MeanOutputs()
    run(tiny, PROMPTS, range(3), patterns, outputs, steps=1, guidance=None, batch=batch)
    both, means = Patterns(HEADS), MeanOutputs()
    run(tiny, PROMPTS, range(3), both, means, steps=1)
    assert torch.allclose(patterns.maps[1, 1], both.maps[1, 1], atol=1e-5)
    assert torch.allclose(outputs.mean[:, 1], means.mean[:, 1], atol=1e-5)
    with pytest.raises(RuntimeError, match="Ablate never acted"):
        run(tiny, PROMPTS, range(3), Ablate(None, branch="uncond"), steps=1, guidance=None)


def test_samples_can_be_told(tiny, by_hand):
    edit = AddResidual(torch.tensor([0.0, 5.0, 9.0]).view(3, 1, 1).expand(3, 1, 16), 1)
    plain, one, patched = Residual(1), Residual(1), Residual(1)
    with hooked(tiny.transformer, plain) as session:
        session.at(0, ("cond",))
        by_hand(500)
    with hooked(tiny.transformer, edit, one) as session:
        session.at(0, ("cond",), samples=[2, 0, 1])
        by_hand(500)
    moved = (one.values - plain.values).mean((1, 2, 3))
    assert torch.allclose(moved, torch.tensor([9.0, 0.0, 5.0]), atol=1e-3)
    with hooked(tiny.transformer, PatchResidual(torch.tensor([2, 1, 0]), 1), patched) as session:
        session.at(0, ("cond",), samples=[2, 0, 1])
        by_hand(500)
    assert torch.equal(patched.values, plain.values[[1, 0, 2]])  # 2 <- 0, 0 <- 2, 1 <- 1


def test_a_forward_that_nobody_told_is_refused(tiny, by_hand):
    before = state(tiny.transformer)
    with pytest.raises(ValueError, match=r"nobody said at which step; call session.at\(step"), \
            hooked(tiny.transformer, Patterns([(0, 0)])) as session:
        session.at(0, ("cond",))
        by_hand(999)
        by_hand(500)                                                        # one word, one forward
    assert state(tiny.transformer) == before


@pytest.mark.parametrize("told, message", [
    ({"step": 0, "branches": ("foo",)}, "branch 'foo' is unknown; choose from uncond, cond"),
    ({"step": 0, "branches": ("cond", "cond")}, "name each of the batch's once"),
    ({"step": 0, "branches": ()}, "name each of the batch's once"),
    ({"step": -1, "branches": ("cond",)}, "step -1 is not a whole number"),
    ({"step": 0.5, "branches": ("cond",)}, "step 0.5 is not a whole number"),
    ({"step": 0, "branches": ("cond",), "samples": [0, 0, 1]}, "give each a number of its own"),
    ({"step": 0, "branches": ("cond",), "samples": [0, 1]},
     "a batch of 3 rows does not consist of 1 branches"),
    ({"step": 0}, "a batch of 3 rows does not consist of 2 branches"),
    ({"step": 9, "branches": ("cond",)},
     "Ablate describes 2 steps from 0, but the model is at step 9"),
])
def test_what_is_told_must_fit(tiny, by_hand, told, message):
    edit = Ablate(None, steps=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=message), hooked(tiny.transformer, edit) as session:
        session.at(**told)
        by_hand(500)


def test_a_reader_of_uneven_steps_says_so(tiny, by_hand):
    reader = Patterns([(0, 0)])
    with hooked(tiny.transformer, reader) as session:
        for step, count in ((0, 3), (1, 2)):
            session.at(step, ("cond",))
            by_hand(500, PROMPTS[:count])
    with pytest.raises(ValueError, match="step 1 saw other samples than step 0"):
        _ = reader.maps


# ---- what is refused at once

NAN = torch.tensor([float("nan")])
WRONG = {
    "heads": (lambda: Ablate((1, 3)), r"heads are \(1, 3\); give a list of pairs \(layer, head\)"),
    "heads of a reader": (lambda: Patterns((1, 3)), r"heads are \(1, 3\)"),
    "steps": (lambda: Ablate(None, steps=1), r"steps is the number 1; give a list, such as \[1\]"),
    "step mask": (lambda: Ablate(None, steps=torch.ones(3)),
                  "bool tensor .samples, steps., got torch.float32"),
    "mean of 14": (lambda: Ablate(None, torch.zeros(14, 2, 2, 2, 64, 8)),
                   "the mean of Ablate is of 14 steps; the run has 2"),
    "mean's shape": (lambda: Ablate(None, torch.zeros(2, 2, 3, 2, 64, 8)),
                     r"needs \[steps, 2, 2, 2, N, d\]"),
    "mean": (lambda: Ablate(None, torch.full((2, 2, 2, 2, 64, 8), torch.nan)),
             "the mean of Ablate holds NaN"),
    "vector": (lambda: AddResidual(NAN.expand(16)),
               "the vector of AddResidual holds NaN or infinite"),
    "vector's width": (lambda: AddResidual(torch.ones(12)),
                       "AddResidual has width 12; the residual stream has 16"),
    "value": (lambda: Replace(NAN.view(1, 1, 1, 1) / 0),
              "the value of Replace holds NaN or infinite"),
    "value's shape": (lambda: Replace(torch.ones(3)),
                      r"Replace has shape \(3,\); it must broadcast"),
    "keys": (lambda: MaskKeys(torch.ones(3, 7)), "keys must be a bool tensor"),
    "keys' width": (lambda: MaskKeys(torch.zeros(3, 9).bool()),
                    "describes 9 tokens but the text has 7"),
    "source": (lambda: Patch(torch.ones(3)),
               "source must hold the number of a sample for each sample"),
    "group": (lambda: MeanOutputs(group=torch.tensor([0, -1, 1])),
              "group must hold a whole number"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_hooks_are_refused_with_the_input_s_name(tiny, kind):
    make, message = WRONG[kind]
    before, seen = state(tiny.transformer), []
    with pytest.raises(ValueError, match=message) as caught:
        run(tiny, PROMPTS, range(3), make(), steps=2, on_step=lambda i, x: seen.append(i))
    assert not seen and state(tiny.transformer) == before and "\n" not in str(caught.value)


def test_two_hooks_that_hide_all_keys_together_are_refused(tiny):
    first = torch.arange(7)[None] < 3
    for kind in ("cross", "self"):
        keys = first if kind == "cross" else torch.arange(64)[None] < 30
        with pytest.raises(ValueError, match="all tokens of a prompt are hidden"):
            run(tiny, PROMPTS, range(3), MaskKeys(keys, [(0, 0)], kind=kind),
                MaskKeys(~keys, kind=kind), steps=1)
        run(tiny, PROMPTS, range(3), MaskKeys(keys, [(0, 0)], kind=kind),
            MaskKeys(~keys, [(0, 1)], kind=kind), steps=1)


# ---- devices

SOURCE = torch.tensor([1, 0, 2])
HOOKS = {
    "patterns": lambda: Patterns(HEADS),
    "outputs": lambda: MeanOutputs(group=torch.tensor([0, 1, 0])),
    "inputs": MeanResidual, "stream": lambda: Residual(1),
    "ablation": lambda: Ablate([(0, 1)], branch="both"),
    "mean ablation": lambda: Ablate(None, torch.ones(2, 2, 2, 2, 64, 8), steps=[1]),
    "of samples": lambda: Ablate(torch.eye(4)[:3].view(3, 2, 2).bool(),
                                 steps=torch.eye(3)[:, :2].bool()),
    "keys": lambda: MaskKeys(torch.eye(7)[:3].bool()),
    "patch": lambda: Patch(SOURCE, [(0, 0)], "pattern"),
    "value": lambda: Replace(torch.ones(3, 1, 1, 1), stage="query", add=True),
    "path": lambda: PathPatch((0, 0), [(1, 1)], SOURCE, torch.tensor([True, False, True])),
    "vector": lambda: AddResidual(torch.ones(3, 1, 16)),
    "image tokens": lambda: PatchResidual(SOURCE, 1, torch.arange(64) < 9),
}


def result(hook):
    for kind in ("maps", "mean", "values"):
        if isinstance(hook, Reader) and hasattr(hook, kind):
            value = getattr(hook, kind)
            return value[1, 1] if kind == "maps" else value
    return None


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_work_on_another_device_and_wait_for_it_once_a_forward_at_most(tiny, kind):
    hook, steps = HOOKS[kind](), 2
    wanted = run(tiny, PROMPTS, range(3), hook, steps=steps)
    read = result(hook)
    with fake_device() as device:
        net = replace(tiny, transformer=copy.deepcopy(tiny.transformer).to(device))
        start = waits()
        draw(net, steps)
        plain = waits() - start
        again = HOOKS[kind]()
        found = run(net, PROMPTS, range(3), again, steps=steps)
        extra = waits() - start - 2 * plain
        assert found.device == device and torch.allclose(found.cpu(), wanted, atol=1e-4)
        assert extra <= (steps if kind == "keys" else 0)
        if read is not None:
            assert result(again).device == device
            assert torch.allclose(result(again).cpu(), read, atol=1e-4, equal_nan=True)
