"""Records: slow calls are read only where model, code and arguments are those they were made with."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from spatial_circuits.analyses.ablation import ablate, mean_outputs
from spatial_circuits.analyses.circuit import Circuit
from spatial_circuits.analyses.evaluation import evaluate
from spatial_circuits.analyses.synopsis import synopsis
from spatial_circuits.book import sources
from spatial_circuits.book.frozen import freeze, load_frozen, save_frozen, thaw
from spatial_circuits.book.records import (
    WRITE,
    Records,
    compare_frames,
    compare_tensors,
    machine,
)
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.pipeline import Model
from spatial_circuits.model.store import load
from spatial_circuits.model.transformer import bf16_copy

PROMPTS = prompt_set("264")[:3]


def frames():
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["condition", "k"])
    yield pd.DataFrame({"x": [1.5, np.nan], "ok": [True, False], "n": [3, 4], "t": ["u", "v"],
                        "head": [(0, 1), (2, 3)]}, index=index)
    yield pd.DataFrame(np.eye(2), columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))
    yield pd.DataFrame({"empty": pd.Series([], dtype=float)})
    yield pd.DataFrame({0: [np.inf, -1.0]}, index=pd.Index(["p", "q"], name="prompt"))


@pytest.mark.parametrize("frame", frames(), ids=["levels", "columns", "empty", "infinite"])
def test_a_frame_comes_back_as_it_was(frame):
    record = json.loads(json.dumps(freeze(frame, {}), allow_nan=False))
    pd.testing.assert_frame_equal(thaw(record, {}), frame, check_column_type=False,
                                  check_index_type=False)


def test_containers_tensors_and_own_classes_come_back(tmp_path):
    trace = pd.DataFrame({"factor": ["shape"], "effect": [0.5]})
    value = {"a": (torch.tensor([1.0, 0.1]), [1, None, True]), 2: np.arange(3.0),
             "s": pd.Series([1.0, 2.0], ["x", "y"], name="score"), "nan": float("nan"),
             "c": Circuit([(0, 1)], [(1, 0)], [], trace), "i": torch.tensor([3])}
    save_frozen(tmp_path / "k", value, {"seconds": 1})
    back, about = load_frozen(tmp_path / "k")
    assert about == {"seconds": 1} and list(back) == list(value) and np.isnan(back["nan"])
    assert torch.equal(back["a"][0], torch.tensor([1.0, 0.1]).half().float())
    assert back["a"][1] == [1, None, True] and back["i"].dtype == torch.int64
    pd.testing.assert_series_equal(back["s"], value["s"])
    assert back["c"].heads == [(0, 1), (1, 0)] and back["c"].trace.equals(trace)
    np.testing.assert_array_equal(back[2], value[2])


def test_what_cannot_be_kept_is_refused_and_no_foreign_class_is_made(tmp_path):
    with pytest.raises(TypeError, match="object cannot be kept"):
        freeze(object(), {})
    with pytest.raises(ValueError, match="beyond fp16"):
        freeze(torch.tensor([1e6]), {})
    with pytest.raises(ValueError, match="not of this library"):
        thaw({"object": "subprocess:Popen", "fields": {"args": ["true"]}}, {})
    (tmp_path / "k.json").write_text('{"value": {"pickle": 1}, "about": {}}')
    with pytest.raises(ValueError, match="k.json is damaged"):
        load_frozen(tmp_path / "k")


@pytest.fixture
def records(tmp_path, monkeypatch):
    """A function that opens a chapter's records, in a folder and a cache of the test's own."""
    monkeypatch.setenv("SPATIAL_CIRCUITS_CACHE", str(tmp_path / "cache"))
    return lambda: Records("chapter", tmp_path / "records")


def calls(monkeypatch):
    """Counts Model.latents, with everything else as it is."""
    made = []
    real = Model.latents

    def latents(self, prompts, seeds, **options):
        made.append(len(prompts))
        return real(self, prompts, seeds, **options)
    latents.__qualname__, latents.__module__ = real.__qualname__, real.__module__
    monkeypatch.setattr(Model, "latents", latents)
    return made


def test_a_call_is_made_once_and_then_read(tiny, records, monkeypatch):
    made = calls(monkeypatch)
    first = records()(evaluate, tiny, PROMPTS, 1, steps=2)
    assert made == [3]
    again = records()
    second = again(evaluate, tiny, PROMPTS, images_per_prompt=1, steps=2)
    assert made == [3], "the same call, said otherwise, was made again"
    pd.testing.assert_frame_equal(first, second)
    assert again.checked().loc["evaluate", ["calls", "read"]].tolist() == [1, 1]
    for other in ({"steps": 3}, {"steps": 2, "seed": 5}):
        records()(evaluate, tiny, PROMPTS, 1, **other)
    records()(evaluate, tiny, PROMPTS[:2], 1, steps=2)
    assert made == [3, 3, 3, 2]


def test_other_weights_or_other_code_are_another_result(tiny, lively, records, monkeypatch):
    key = records().key(evaluate, (tiny, PROMPTS), {})
    other = replace(tiny, transformer=lively(128, 1))
    assert records().key(evaluate, (other, PROMPTS), {}) != key
    monkeypatch.setattr(sources, "_module_hash", lambda name: f"changed {name}")
    assert records().key(evaluate, (tiny, PROMPTS), {}) != key


def test_precision_is_not_part_of_the_key(records):
    rte = load("rte")
    fast = replace(rte, transformer=bf16_copy(rte.transformer))
    assert (records().key(evaluate, (rte, PROMPTS), {})
            == records().key(evaluate, (fast, PROMPTS), {}))


def test_a_result_as_an_argument_counts_by_how_it_was_made(tiny, records, monkeypatch):
    sets, made = {"L0H0": [(0, 0)]}, None
    for _ in range(2):
        book = records()
        mean = book(mean_outputs, tiny, PROMPTS, steps=2)
        frame = book(ablate, tiny, PROMPTS, sets, mean=mean, steps=2)
        made = made or calls(monkeypatch)
    assert made == [] and set(frame["condition"]) == {"intact", "L0H0"}


def test_a_part_is_run_again_and_set_beside_the_record(tiny, records):
    records()(ablate, tiny, PROMPTS, {"L0H0": [(0, 0)]}, steps=2)
    book = records()
    book(ablate, tiny, PROMPTS, {"L0H0": [(0, 0)]}, steps=2, live=2)
    latents = book(Model.latents, tiny, PROMPTS, [1, 2, 3], steps=2)
    book = records()
    book(ablate, tiny, PROMPTS, {"L0H0": [(0, 0)]}, steps=2, live=2)
    again = book(Model.latents, tiny, PROMPTS, [1, 2, 3], steps=2, live=1)
    row, of_latents = (r for _, r in book.checked().iterrows())
    assert (row["pictures again"], row["same verdict"]) == (4, 1.0)
    said = book.report().data
    assert "| `ablate` | 1 | 1 | " in said and said.count("\n| `") == 2 and "NaN" not in said
    assert f"Recorded on {machine()}. Columns: *calls*, how often" in said
    assert of_latents["pictures again"] == 1 and of_latents["difference"] < 2e-3
    assert torch.equal(again, latents)


def test_a_synopsis_is_compared_prompt_by_prompt(records):
    rte = load("rte")
    for _ in range(2):
        book = records()
        found = book(synopsis, rte, PROMPTS, 1, steps=4, live=2)
    assert found.prompts == PROMPTS and found.share.shape[0] == 3
    row = book.checked().iloc[0]
    assert row["pictures again"] == 2 and row["difference"] < 1e-3


def test_a_difference_between_then_and_now_is_seen():
    then = pd.DataFrame({"prompt": ["a", "b"], "condition": ["x", "x"], "loose": [True, True],
                         "shape": [True, True], "dx": [1.0, 2.0]})
    now = then.assign(loose=[True, False], dx=[0.0, 0.0])
    said = compare_frames(then, now)
    assert (said["loose then"], said["loose now"], said["same verdict"]) == (1.0, 0.5, 0.75)
    gap = compare_tensors(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 3.0]))["difference"]
    assert gap == pytest.approx(0.5)


def test_the_book_is_written_to_only_where_its_outputs_are_refreshed(tiny, records, monkeypatch,
                                                                     tmp_path):
    records()(evaluate, tiny, PROMPTS, 1, steps=2)
    assert not (tmp_path / "records").exists()
    monkeypatch.setenv(WRITE, "1")
    records()(evaluate, tiny, PROMPTS, 1, steps=2)
    assert len(list((tmp_path / "records" / "chapter").glob("*.json"))) == 1


def test_an_argument_without_a_hash_is_refused_by_name(tiny, records):
    with pytest.raises(ValueError, match="type object has no hash"):
        records().key(evaluate, (tiny, [object()]), {})
    with pytest.raises(ValueError, match="no name of its own"):
        records()(lambda prompts: prompts, PROMPTS)
    with pytest.raises(ValueError, match="takes no prompts"):
        for _ in range(2):
            records()(prompt_set, "264", live=1)


def test_comments_and_docstrings_do_not_change_the_hash_of_code(monkeypatch):
    texts = {"one": 'def f():\n    "Says."\n    return 1\n', "two": "def f():  # now\n    return 1\n",
             "three": "def f():\n    return 2\n"}
    monkeypatch.setattr(sources, "_source", texts.__getitem__)
    bare = sources._module_hash.__wrapped__

    def of(name):
        return bare(name).replace(name, "")
    import ast
    dumps = {n: ast.dump(ast.parse(t)) for n, t in texts.items()}
    assert dumps["one"] != dumps["two"]
    monkeypatch.setattr(sources.hashlib, "sha256", lambda b: type("h", (), {
        "hexdigest": lambda self: b.decode().split(" ", 1)[1]})())
    assert of("one") == of("two") != of("three")


def test_the_hash_of_code_reaches_through_imports():
    reached = sources._reached("spatial_circuits.analyses.ablation")
    assert {"spatial_circuits.hooks.edits", "spatial_circuits.model.sampler",
            "spatial_circuits.data.detect"} <= reached
    assert not any(".book" in name or ".cli" in name for name in reached)
