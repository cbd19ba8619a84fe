"""The static figures hold the recorded numbers and answer to clicks and keys, in a browser."""
import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packing import unpacked
from PIL import Image

from spatial_circuits.analyses.weight_maps import cross_weights, project_captions, shape_keys
from spatial_circuits.book import explorer as explorers
from spatial_circuits.book.explorer import (
    CIRCUIT_STAGES,
    Figure,
    circuit_figure,
    compare_circuits,
    explorer,
    mechanism,
    packed,
    percents,
    strip,
)
from spatial_circuits.book.recording import SAID, Workbench, record, role_ramps
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.readers import Patterns

PROMPTS = ["red square is above blue circle", "blue triangle is to the left of red circle"]
HEADS = {"without L0H0": [(0, 0)], "without L1H1": [(1, 1)]}
MEMBERS = {"L0H0": "relation", "L1H1": "object"}


@pytest.fixture(scope="module")
def bench(tiny):
    return Workbench(tiny, [(0, 0)], steps=3)


@pytest.fixture(scope="module")
def recordings(bench):
    return compare_circuits(bench, PROMPTS, HEADS, seed=4)


@pytest.fixture(scope="module")
def data(bench, recordings):
    return explorer(bench, recordings, MEMBERS)


@pytest.fixture(scope="module")
def shown(recordings):
    return percents(torch.cat([r.attention for r in recordings]))  # [P, C, S, L, H, R, 8, 8]


@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 4))
def test_what_is_packed_is_unpacked(seed, conditions, steps):
    shape = (2, conditions, steps, 5)
    values = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    assert np.array_equal(unpacked(packed(values), values.shape), values)


def test_the_data_are_the_recordings(data, shown, recordings):
    assert data["shape"] == [2, 4, 3, 2, 2, 5]
    assert data["conditions"] == ["intact", *HEADS, "opposite relation written in"]
    assert np.array_equal(unpacked(data["attention"], shown.shape), shown)
    assert [p["text"] for p in data["prompts"]] == PROMPTS
    assert [len(p["outcomes"]) for p in data["prompts"]] == [4, 4]
    assert data["prompts"][0]["outcomes"][3].endswith(": red square is below blue circle")


def test_all_start_from_the_noise_of_the_seed_that_is_named(bench, recordings):
    for prompt, recording in zip(PROMPTS, recordings):
        alone = bench.model.latents([prompt], [4], steps=3)[0]
        assert torch.allclose(recording.latents[0, 0], alone, atol=1e-4)


def test_a_strip_holds_the_pictures_side_by_side():
    colours = torch.tensor([(255, 0, 0), (0, 0, 255)], dtype=torch.uint8)
    pictures = colours[:, :, None, None].expand(-1, -1, 16, 16)
    data = io.BytesIO(base64.b64decode(strip(pictures, quality=95)))
    image = np.asarray(Image.open(data).convert("RGB")).astype(int)
    assert image.shape == (16, 32, 3) and np.abs(image[8, [8, 24]] - colours.numpy()).max() < 12


def test_the_html_is_self_contained(data):
    html = Figure(data, "A <caption>", "A text")._repr_html_()
    assert "http:" not in html and "https:" not in html and "import(" not in html
    assert "A &lt;caption&gt;" in html
    with pytest.raises(ValueError, match="kind 'film' is unknown; choose from explorer, circuit"):
        Figure({"kind": "film"}, "", "")


@pytest.fixture(scope="module")
def tab(chromium, bench, data, tmp_path_factory):
    """A page with both figures, from a file, offline."""
    ways = [mechanism(bench, PROMPTS, {"relation": [(0, 0)], "object": [(1, 1)], "colour": []},
                      reads, title, 4) for reads, title in (("relation", "one"), ("shape2", "two"))]
    figures = [Figure(data, "Explorer.", "The explorer"),
               Figure(circuit_figure(ways), "Circuit.", "The circuit")]
    file = tmp_path_factory.mktemp("figures") / "page.html"
    body = "".join(f._repr_html_() for f in figures)
    head = "<!doctype html><html lang=en><meta charset=utf-8><title>Figures</title>"
    file.write_text(f"{head}<main>{body}</main></html>")
    context = chromium.new_context(offline=True, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.goto(file.as_uri())
    page.wait_for_function("[...document.querySelectorAll('.sc')].every((f) => f.dataset.ready)")
    page.ways = ways
    yield page
    assert page.errors == []
    context.close()


def said(figure) -> str:
    return figure.locator("output").text_content()


def sentence(values: np.ndarray, head: str, step: int) -> tuple[str, str]:
    row, column = divmod(int(values.argmax()), 8)
    member = f" ({MEMBERS[head]} head)" if head in MEMBERS else ""
    most = f"most {values.max()} % at row {row + 1}, column {column + 1}"
    return f"{head}{member}, step {step}", f"mean {values.mean():.1f} %, {most}"


def test_clicks_show_the_map_that_python_computed(tab, shown, recordings):
    figure = tab.locator(".sc").nth(0)
    for p, c, s, head, role in ((1, 1, 2, (1, 0), "shape2"), (0, 3, 0, (0, 1), "relation"),
                                (0, 0, 1, (1, 1), "colour1")):
        figure.get_by_role("combobox", name="Prompt").select_option(index=p)
        figure.get_by_role("combobox", name="Change").select_option(index=c)
        figure.get_by_role("slider").fill(str(s))
        name = f"L{head[0]}H{head[1]}"
        figure.get_by_role("radio", name=name).click()
        words = [r for r in recordings[p].roles[0] if r in SAID]
        figure.locator(".chips button").nth(words.index(role)).click()
        values = shown[p, c, s, head[0], head[1], SAID.index(role)]
        assert all(part in said(figure) for part in sentence(values, name, s)), said(figure)
        drawn = figure.locator("canvas[tabindex]").evaluate(
            "(c) => [...c.getContext('2d').getImageData(0, 0, 8, 8).data]")
        brightest = max(range(64), key=lambda i: sum(drawn[4 * i:4 * i + 3]))
        assert values.flatten()[brightest] == values.max()


def test_keys_do_what_clicks_do(tab, shown):
    figure = tab.locator(".sc").nth(0)
    figure.get_by_role("combobox", name="Prompt").select_option(index=0)
    figure.get_by_role("combobox", name="Change").select_option(index=2)
    figure.get_by_role("slider").fill("0")
    figure.get_by_role("radio", name="L0H0").click()
    figure.locator(".chips button").nth(2).click()
    figure.get_by_role("radio", name="L0H0").focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    assert figure.get_by_role("radio", name="L1H1").get_attribute("aria-checked") == "true"
    figure.get_by_role("slider").focus()
    tab.keyboard.press("ArrowRight")
    values = shown[0, 2, 1, 1, 1, SAID.index("relation")]
    assert all(part in said(figure) for part in sentence(values, "L1H1", 1)), said(figure)
    figure.locator("canvas[tabindex]").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        tab.keyboard.press(key)
    assert f"{values[2, 1]} % at row 3, column 2." in said(figure)
    figure.locator(".chips button").nth(2).focus()
    tab.keyboard.press("ArrowRight")
    assert sentence(shown[0, 2, 1, 1, 1, SAID.index("colour2")], "L1H1", 1)[1] in said(figure)


def test_a_click_on_the_map_reads_its_cell(tab, shown):
    figure = tab.locator(".sc").nth(0)
    canvas = figure.locator("canvas[tabindex]")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 7.5 / 8, "y": box["height"] * 0.5 / 8})
    assert "at row 1, column 8." in said(figure)


def test_playing_ends_at_the_last_step(tab):
    figure = tab.locator(".sc").nth(0)
    figure.get_by_role("slider").fill("0")
    figure.get_by_role("button", name="Play").click()
    tab.wait_for_function("document.querySelector('.sc input[type=range]').value === '2'")
    figure.get_by_role("button", name="Play").wait_for()
    assert "step 2" in said(figure)


def test_the_circuit_is_walked_by_keys_and_shows_each_mechanism(tab, bench):
    figure = tab.locator(".sc").nth(1)
    stages = figure.locator("ol button")
    titles = [f"{i} {title}" for i, title in enumerate(CIRCUIT_STAGES, 1)]
    assert stages.all_text_contents() == titles
    stages.nth(0).focus()
    tab.keyboard.press("ArrowRight")
    assert stages.nth(1).get_attribute("aria-current") == "step"
    assert "the relation word" in figure.locator("p.said").text_content()
    figure.get_by_role("combobox", name="Mechanism").select_option(index=1)
    assert "the second shape's word" in figure.locator("p.said").text_content()
    assert figure.locator(".chips .on").all_text_contents() == ["circle"]
    tab.keyboard.press("Tab")
    figure.get_by_role("combobox", name="Prompt").select_option(index=1)
    expected = tab.ways[1]["runs"][1]["stages"][1]["maps"]
    assert figure.locator("figcaption").count() == len(expected) == 2
    drawn = role_ramps(bench.model, PROMPTS)[1, 0, 0, SAID.index("shape2")]
    assert np.allclose(expected[0]["values"], drawn.flatten(), atol=0.006)
    assert expected[0]["label"] == "L0H0 by place alone"
    stages.nth(4).click()
    figure.locator("figcaption").nth(2).wait_for()
    assert figure.locator("figcaption").all_text_contents() == ["step 0", "step 1", "step 2"]


@pytest.mark.parametrize("calm", [False, True])
def test_the_circuit_plays_to_its_end_and_stands_still_for_those_who_ask(chromium, bench, tmp_path, calm):
    way = mechanism(bench, PROMPTS[:1], {"relation": [(0, 0)], "object": [(1, 1)]}, "relation", "one", 4)
    file = tmp_path / "page.html"
    html = Figure(circuit_figure([way], seconds=0.05), "Circuit.", "The circuit")._repr_html_()
    file.write_text(f"<!doctype html><meta charset=utf-8>{html}")
    context = chromium.new_context(offline=True, reduced_motion="reduce" if calm else "no-preference")
    page = context.new_page()
    page.goto(file.as_uri())
    current, play = page.locator("[aria-current=step]"), page.locator("button.play")
    assert page.get_by_role("combobox", name="Mechanism").count() == 0           # there is but one
    play.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert current.text_content() == ("2 relation heads look" if calm else "5 picture")
    assert play.text_content() == ("Next stage" if calm else "Play")
    page.keyboard.press("Enter")                                                 # from the end: anew
    if not calm:
        assert play.text_content() == "Pause"
        page.locator("ol button").nth(2).click()                                 # a choice stops it
        page.wait_for_timeout(200)
    assert current.text_content() == "3 they leave a tag" and play.text_content() != "Pause"
    context.close()


def test_a_stage_takes_time():
    with pytest.raises(ValueError, match="0 seconds a stage; give more than 0"):
        circuit_figure([], seconds=0)


def test_the_tag_is_the_change_of_the_object_heads_choice(bench):
    """The map of stage 3, recomputed from a head's write and the object head's keys."""
    way = mechanism(bench, PROMPTS[:1], {"relation": [(0, 0)], "object": [(1, 1)]}, "relation",
                    "one", 4)
    patterns = Patterns([(0, 0)])
    with hooked(bench.model.transformer, patterns):
        bench.model.latents(PROMPTS[:1], [4], steps=3)
    text = bench.model.encoder.encode(PROMPTS[:1])
    word, w = text.roles[0].index("relation"), cross_weights(bench.model.transformer)
    vector = project_captions(bench.model.transformer, text.embeddings)[0, word]
    value = w["v"][0, 0] @ vector + w["bv"][0, 0]
    write = patterns.maps[0, 0][0, 0, :, word, None] * (w["o"][0, 0] @ value)  # [N, D]
    keys = shape_keys(bench.model.transformer, bench.model.encoder, PROMPTS[:1])[0]
    query, key = (write - write.mean(0)) @ w["q"][1, 1].T, w["k"][1, 1] @ (keys[0] - keys[1])
    logit = query @ key * w["k"].shape[2] ** -0.5
    found = way["runs"][0]["stages"][2]["maps"][0]["values"]
    assert np.allclose(found, logit, atol=0.02 * float(logit.abs().max()) + 0.006)
    assert json.dumps(way)


def test_tags_are_computed_where_the_model_is(bench, monkeypatch):
    """Every tensor that meets the weights is on their device, and the figure's are on the CPU."""
    class Elsewhere:
        """A transformer on another device."""
        device = torch.device("meta")

    def on_device(result):
        def call(net, *args):
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            assert all(x.device == net.device for x in tensors)
            return result(*args)
        return call
    fakes = {"project_captions": lambda e: torch.zeros(*e.shape[:2], 16, device="meta"),
             "shape_keys": lambda encoder, prompts: torch.zeros(2, 2, 16, device="meta"),
             "head_writes": lambda vectors, pattern, head: torch.zeros(1, 64, 16, device="meta"),
             "logit_shift": lambda write, keys, head: torch.zeros(1, 64)}
    made = record(bench, PROMPTS, {}, [1, 2])
    for name, fake in fakes.items():
        monkeypatch.setattr(explorers, name, on_device(fake))
    there = Workbench(replace(bench.model, transformer=Elsewhere()), steps=3)
    monkeypatch.setattr(explorers, "record", lambda *a: made)
    monkeypatch.setattr(explorers, "role_ramps", lambda *a: role_ramps(bench.model, PROMPTS))
    heads = {"relation": [(0, 0)], "object": [(1, 1)]}
    way = mechanism(there, PROMPTS, heads, "relation", "one", 4)
    assert way["runs"][1]["stages"][2]["maps"][0]["values"][0] == 0


def test_a_role_that_carries_no_relation_is_refused(bench):
    with pytest.raises(ValueError, match="role 'shape1' is unknown; choose from relation, shape2"):
        mechanism(bench, PROMPTS, {"relation": [], "object": []}, "shape1", "one")
