"""Training: the same run twice, interrupted and resumed, has the same weights to the bit."""
import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from spatial_circuits.data.captions import all_captions, captions
from spatial_circuits.data.metrics import METRICS
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import SHAPES, sample_scenes
from spatial_circuits.model.noise import Noise
from spatial_circuits.model.precision import resolve_precision
from spatial_circuits.model.transformer import build_transformer
from spatial_circuits.training.batches import Batches, encode_captions
from spatial_circuits.training.checkpoint import load_average
from spatial_circuits.training.log import Log, read_log
from spatial_circuits.training.loop import learning_rate, optimizers, train
from spatial_circuits.training.monitor import monitor
from spatial_circuits.training.recipe import (
    PAPER,
    RECIPES,
    Recipe,
    check_recipe,
    override_recipe,
)

FAST = Recipe(size="atom", batch=4, cache=32, steps=100, warmup=5, precision="no", compile=False)


@pytest.fixture
def run(tmp_path, rte, vae, atom, one_thread):
    """A function that trains in a folder of that name and returns (weights, log, checkpoint)."""
    def go(name: str, recipe: Recipe = FAST, **options):
        model = train(recipe, rte, vae, tmp_path / name, progress=False, **options)
        (checkpoint,) = (tmp_path / name).glob("checkpoint-*.safetensors")
        return model.state_dict(), read_log(tmp_path / name / "log.jsonl"), load_file(checkpoint)
    return go


def batches(recipe, rte, vae) -> Batches:
    return Batches(recipe, encode_captions(rte), vae, torch.device("cpu"), progress=False)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def timeless(log: list[dict]) -> list[dict]:
    clock = ("seconds", "images_per_s")
    return [{k: v for k, v in record.items() if k not in clock} for record in log]


def test_runs_repeat_and_resume_bit_for_bit(run):
    weights, log, state = run("whole")
    first = run("parts", stop_at=50)[1]
    resumed = run("parts", resume=True)
    assert [r["step"] for r in first] == [50]
    assert resumed[1][:1] == first  # not trained anew, or its time would differ
    assert same(resumed[0], weights)  # of the EMA
    assert same(resumed[2], state)  # weights, EMA and optimizer states
    assert timeless(resumed[1]) == timeless(log) and [r["step"] for r in log] == [50, 100]
    assert log[1]["loss"] < log[0]["loss"] and log[1]["images"] == 400
    assert [r["seconds"] for r in resumed[1]] == sorted(r["seconds"] for r in resumed[1])
    assert same(run("parts", resume=True)[0], weights)  # a finished run stays as it is


def test_a_run_killed_while_the_noise_widens_ends_with_the_same_weights(run):
    recipe = override_recipe(RECIPES["noise-first"], {
        "size": "atom", "batch": 4, "cache": 32, "steps": 100, "warmup": 5, "precision": "no",
        "compile": False})
    assert recipe.pure * 100 < 17 < (recipe.pure + recipe.widen) * 100
    weights, _, state = run("whole", recipe)
    run("parts", recipe, stop_at=17)
    resumed = run("parts", recipe, resume=True)
    assert same(resumed[0], weights) and same(resumed[2], state)
    assert not same(run("other", replace(recipe, pure=0.3))[0], weights)


def test_evaluation_sees_the_averaged_weights_and_changes_nothing(run):
    recipe, seen = replace(FAST, steps=6), []

    def evaluate(model):
        torch.rand(3)
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"score": len(seen)}
    weights, log, state = run("watched", recipe, evaluate=evaluate, evaluate_every=2)
    plain = run("plain", recipe)
    assert same(weights, plain[0]) and same(state, plain[2])
    assert [(r["step"], r["score"]) for r in log if "score" in r] == [(2, 1), (4, 2), (6, 3)]
    assert same(seen[-1], weights) and not same(seen[0], weights)
    assert not same(weights, {k[6:]: v for k, v in state.items() if k.startswith("model.")})


def test_seed_and_recipe_change_the_weights(run):
    short = replace(FAST, steps=2)
    weights = run("0", short)[0]
    changes = ({"seed": 1}, {"noise": Noise(high=0.1)}, {"muon_lr": 0.0}, {"cache": 0},
               {"text_dropout": 1.0})
    for i, change in enumerate(changes):
        other = run(f"other{i}", replace(short, **change))[0]
        equal = [torch.equal(other[k], weights[k]) for k in weights]
        assert not all(equal), change


def test_one_process_trains_at_two_precisions(run):
    full, half = (run(p, replace(FAST, steps=2, precision=p))[0] for p in ("no", "bf16"))
    assert all(torch.isfinite(v).all() for v in half.values()) and not same(full, half)


def test_a_run_is_neither_overwritten_nor_resumed_with_another_recipe(run, tmp_path):
    short = replace(FAST, steps=2)
    run("a", short)
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir())
    with pytest.raises(FileExistsError, match="holds a run; resume it or choose another folder"):
        run("a", short)
    with pytest.raises(ValueError, match="another recipe; it differs in noise, lr"):
        run("a", replace(short, lr=1e-4, noise=Noise(high=0.1)), resume=True)
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir()) == before


def test_a_damaged_checkpoint_is_refused_by_name(run, tmp_path):
    run("a", stop_at=2)
    path = tmp_path / "a" / "checkpoint-00000002.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:len(whole) // 2], b"", b"\xff" * 100 + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checkpoint-00000002.safetensors is damaged"):
            run("a", resume=True)


def test_checkpoints_replace_each_other_and_leftovers_vanish(run, tmp_path):
    run("a", stop_at=2)
    leftover = tmp_path / "a" / "checkpoint-00000003.partial"  # a kill while writing
    leftover.write_bytes(b"half")
    run("a", resume=True, stop_at=4)
    left = [p.name for p in (tmp_path / "a").glob("checkpoint-*")]
    assert left == ["checkpoint-00000004.safetensors"]


def test_all_checkpoints_are_kept_if_asked_and_hold_the_averaged_weights(rte, vae, atom, tmp_path, one_thread):
    def go(**options):
        return train(FAST, rte, vae, tmp_path / "a", progress=False, checkpoint_every=2, keep=True, **options)
    half = go(stop_at=4).state_dict()
    (tmp_path / "a" / "checkpoint-00000005.partial").write_bytes(b"half")
    last = go(resume=True, stop_at=6).state_dict()
    left = sorted((tmp_path / "a").glob("checkpoint-*"))
    assert [p.name for p in left] == [f"checkpoint-0000000{n}.safetensors" for n in (2, 4, 6)]
    net = build_transformer("atom", rte.dim, 1)
    assert not same(net.state_dict(), half)
    for path, wanted in ((left[1], half), (left[2], last)):
        assert load_average(path, net) == int(path.stem[-8:]) and same(net.state_dict(), wanted)
    with pytest.raises(ValueError, match="checkpoint-00000006.safetensors holds the weights of a model of another size"):
        load_average(left[2], build_transformer("atom", rte.dim + 1, 0))


def test_the_log_of_a_killed_run(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 50, "seconds": 5.0}\n{"step": 100, "seconds": 9.5}\n{"step": 15')
    assert [r["step"] for r in read_log(path)] == [50, 100]
    log = Log(path, keep=50)
    log.write(step=100)
    assert [r["step"] for r in read_log(path)] == [50, 100] and read_log(path)[1]["seconds"] >= 5.0
    Log(path)
    assert read_log(path) == []


def test_the_monitor_logs_metrics_and_text_gain(lively, rte, vae):
    record = monitor(Noise(), rte, vae, count=4)(lively())
    assert set(record) == {*METRICS, "text_gain"} and json.loads(json.dumps(record)) == record
    assert set(record["text_gain"]) == {"error", "shape", "binding", "axis", "order"}
    assert all(record["text_gain"]["order"].values())  # an untrained model is moved by the text


@pytest.fixture(scope="module")
def data(rte, vae):
    return batches(replace(FAST, batch=512), rte, vae)


def test_a_batch_is_a_function_of_step_and_rows(data, rte, vae):
    rows = torch.arange(512, 1024)
    one, two = data.batch(1, rows), data.batch(1, rows)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    x0, eps, t, text, mask = one
    scenes = sample_scenes(rows % 32, FAST.seed)
    assert torch.allclose(x0[:8], vae.encode(render(scenes[:8])), atol=2e-2)  # cached in fp16
    assert abs(eps.mean()) < 0.01 and abs(eps.std() - 1) < 0.01
    assert not torch.equal(data.batch(2, rows + 512)[1], eps)
    expected = FAST.noise.times((torch.arange(512) + 0.5) / 512)
    off = (t.sort()[0] - expected.sort()[0]).abs().max()
    assert off < 2 / 512 / (1 - FAST.noise.high)  # stratified
    assert (t[:-1] <= t[1:]).float().mean() < 0.6  # ... in random order


def test_texts_are_the_scenes_captions_or_the_null(rte, vae):
    rows = torch.arange(2000)
    plain = batches(replace(FAST, first_up=0.5, drop_colors=0.3), rte, vae)
    words = {c: i + 1 for i, c in enumerate(all_captions())}
    _, _, _, text, mask = plain.batch(0, rows)
    null = rte.encode([""]).embeddings[0]
    nulls = mask.sum(1) == 1
    assert nulls.float().mean() == pytest.approx(FAST.text_dropout, abs=0.03)
    assert torch.equal(text[nulls][:, :1], null.expand(int(nulls.sum()), 1, -1))
    scenes, spoken = sample_scenes(rows % FAST.cache, FAST.seed), [0, 0]
    for i in (~nulls).nonzero()[:, 0].tolist():
        said = [captions(scenes[i].replace(named=torch.tensor([[a, b]])))[0]
                for a in (True, False) for b in (True, False)]
        found = [k for k, c in enumerate(said) if torch.equal(text[i], plain.text[words[c]])]
        assert found
        spoken = [spoken[0] + (found[0] < 2), spoken[1] + (found[0] % 2 == 0)]
    assert [s / int((~nulls).sum()) for s in spoken] == pytest.approx([0.7, 0.7], abs=0.04)


def test_the_curriculum_mentions_the_upper_object_first_and_fades(rte, vae):
    recipe = replace(FAST, steps=1000, first_up=0.9, first_until=0.5, drop_colors=1.0,
                     drop_from=0.5, text_dropout=0.0)
    data = batches(recipe, rte, vae)
    table = all_captions()
    scenes = sample_scenes(torch.arange(1000) % FAST.cache, FAST.seed)
    apart = (scenes.xy[:, 0] - scenes.xy[:, 1])[:, 1].abs() > 5
    upper = torch.where(apart, scenes.xy[:, :, 1].argmin(1), scenes.xy[:, :, 0].argmin(1))
    share = []
    for step in (0, 250, 500):
        text = data.batch(step, torch.arange(1000))[3]
        told = [table[i] for i in torch.cdist(text.flatten(1), data.text[1:].flatten(1)).argmin(1)]
        assert all(("red" in c) == ("blue" in c) == (step < 500) for c in told)
        first = [next(w for w in c.split() if w in SHAPES) for c in told]
        shapes = zip(scenes.shape.tolist(), upper.tolist(), first, strict=True)
        share.append(sum(SHAPES[s[u]] == w for s, u, w in shapes) / 1000)
    assert share == pytest.approx([0.9, 0.7, 0.5], abs=0.05)


def test_every_parameter_has_one_optimizer(lively):
    model = lively()
    adam, muon = optimizers(model, FAST)
    groups = [[p for g in o.param_groups for p in g["params"]] for o in (adam, muon)]
    assert sorted(map(id, groups[0] + groups[1])) == sorted(map(id, model.parameters()))
    assert all(p.ndim == 2 for p in groups[1])
    assert len(groups[1]) == 2 * 10  # 8 matrices of attention and 2 of the MLP in a block
    assert [type(o) for o in optimizers(model, PAPER)] == [torch.optim.AdamW]


def test_learning_rate_warms_up_holds_and_falls():
    recipe = Recipe(steps=1000, warmup=100, decay=0.2)
    rates = [learning_rate(i, recipe) for i in range(1000)]
    assert rates[0] == 0.01 and rates[99] == 1 and set(rates[99:800]) == {1.0}
    assert rates[900] == pytest.approx(0.5) and rates[999] < 1e-4
    assert rates[800:] == sorted(rates[800:], reverse=True)
    assert {learning_rate(i, replace(recipe, decay=0.0)) for i in range(100, 1000)} == {1.0}


def test_the_paper_s_recipe():
    wanted = {"lr": 1e-4, "weight_decay": 3e-2, "eps": 1e-10, "clip": 0.01, "ema": 0.9999,
              "batch": 256, "steps": 160_000, "preset": "paper", "cache": 10_000, "warmup": 500,
              "muon_lr": 0, "decay": 0, "first_up": 0.5}
    assert {name: getattr(PAPER, name) for name in wanted} == wanted
    assert (PAPER.noise.path, PAPER.noise.prediction) == ("ddpm", "epsilon")
    times = PAPER.noise.times((torch.arange(1000) + 0.5) / 1000)
    assert times.mul(1000).round().tolist() == list(range(1000))
    for recipe in RECIPES.values():
        check_recipe(recipe)
        assert json.loads(json.dumps(asdict(recipe))) == asdict(recipe)


def test_override_reaches_every_level_and_takes_integers_for_floats():
    changes = {"steps": 5, "lr": 1, "noise.high": 0.25, "compile": False, "size": "nano"}
    recipe = override_recipe(Recipe(), changes)
    assert (recipe.steps, recipe.lr, recipe.noise.high) == (5, 1, 0.25)
    assert (recipe.compile, recipe.size) == (False, "nano")
    assert recipe.noise.knee == Recipe().noise.knee and recipe.batch == Recipe().batch


@pytest.mark.parametrize("changes, message", [
    ({"stepz": 5}, "unknown recipe field stepz; choose from .*steps"),
    ({"noise.hi": 0.1}, r"unknown recipe field noise\.hi; choose from batch, .*noise.high, noise.knee"),
    ({"noise": 1}, "unknown recipe field noise"),
    ({"steps": 5.0}, "recipe field steps is 5.0; it must be of type int"),
    ({"steps": True}, "recipe field steps is True; it must be of type int"),
    ({"compile": 1}, "recipe field compile is 1; it must be of type bool"),
    ({"noise.knee": "high"}, r"recipe field noise\.knee is 'high'; it must be of type float"),
    ({"steps": 0}, "steps is 0; it must be at least 1"),
    ({"lr": -1}, "lr is -1; it must be at least 0"),
    ({"cache": -1}, "cache is -1; it must be at least 0"),
    ({"ema": 1.5}, r"ema is 1\.5; it must lie in 0\.\.1"),
    ({"noise.high": 2.0}, r"noise\.high is 2\.0; it must lie in 0\.\.1"),
    ({"size": "huge"}, "'huge' is unknown; choose from tiny, shallow, toy, nano"),
    ({"preset": "dirty"}, "'dirty' is unknown; choose from clean, paper"),
    ({"preset": "paper"}, "first_up must be 0.5 with preset 'paper'"),
    ({"lr": float("inf")}, "lr is inf; it must be a finite number"),
    ({"eps": float("nan")}, "eps is nan; it must be a finite number"),
    ({"noise.shift": float("nan")}, r"noise\.shift is nan; it must be above 0 and finite"),
    ({"noise.shift": float("inf")}, r"noise\.shift is inf; it must be above 0 and finite"),
    ({"noise.high": float("nan")}, r"noise\.high is nan"),
    ({"decay": float("nan")}, "decay is nan"),
    ({"warmup": -1}, "warmup is -1; it must be at least 0"),
    ({"seed": 10 ** 30}, "seed is 1000000000000000000000000000000; it must lie in 0.."),
    ({"seed": -1}, "seed is -1; it must lie in 0.."),
    ({"precision": "fp64"}, "'fp64' is unknown; choose from auto, no, bf16, fp16"),
])
def test_a_wrong_recipe_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        override_recipe(Recipe(), changes)


def test_precision_is_resolved():
    assert resolve_precision("auto") in ("no", "bf16")
    assert [resolve_precision(p) for p in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]
