"""The explorer's widgets, driven without a browser: set a control, read what is shown."""
import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spatial_circuits.book import recording as recordings
from spatial_circuits.book.explorer import outcome
from spatial_circuits.book.recording import SAID, record
from spatial_circuits.book.widgets import PICTURE_SIZE, VIEWS, Explorer, coloured
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.scenes import RELATIONS

PROMPT = "red square is above blue circle"


def reset(explorer: Explorer, model: str) -> Explorer:
    """The explorer, its controls as they were at first."""
    start = {"model": model, "prompt": PROMPT, "seed": 7, "off": (), "hidden": (),
             "relation": "as it is", "site": "stream", "scale": 1.0, "layer": 0, "head": 0,
             "role": "relation", "step": 13}
    for control, value in start.items():
        getattr(explorer, control).value = value
    assert explorer.message.value == ""
    return explorer


@pytest.fixture(scope="module")
def shipped():
    explorer = Explorer("rte", seed=7)
    explorer.bench().prompts = prompt_set("264")[:22]            # enough for means and vectors
    return explorer


@pytest.fixture
def explorer(shipped):
    """The explorer of the shipped model."""
    return reset(shipped, "rte")


@pytest.fixture(scope="module")
def small(saved):
    return Explorer(str(saved), PROMPT, 7)


@pytest.fixture
def untrained(small, saved):
    """The explorer of a small untrained model, which draws in no time."""
    return reset(small, str(saved))


def pixels(explorer, view: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(explorer.views[view].value)))


def shown(explorer) -> list[bytes]:
    """All that is on the screen but the message."""
    return [*(explorer.views[k].value for k in VIEWS), *(explorer.captions[k].value for k in VIEWS)]


def ready(explorer) -> bool:
    return not any(c.disabled for c in explorer.controls)


def test_the_map_shown_is_the_attention_recorded(explorer):
    for control, value in {"layer": 1, "head": 3, "step": 4, "role": "shape2"}.items():
        getattr(explorer, control).value = value
    seen = explorer.recording.attention[0, 0, 4, 1, 3, SAID.index("shape2")].float()
    middle = slice(PICTURE_SIZE // 16, None, PICTURE_SIZE // 8)
    cells = pixels(explorer, "attention")[middle, middle]
    assert np.array_equal(cells, coloured(seen, float(seen.max())))
    caption = explorer.captions["attention"].value
    assert f"up to {float(seen.max()):.0%}" in caption and "L1H3" in caption


def test_looking_elsewhere_draws_nothing_anew(untrained, monkeypatch):
    monkeypatch.setattr(recordings, "run", lambda *a, **k: pytest.fail("sampled"))
    before = pixels(untrained, "intact")
    untrained.step.value = 0
    assert not np.array_equal(pixels(untrained, "intact"), before)
    assert ready(untrained) and untrained.message.value == ""


def test_a_head_switched_off_changes_the_picture_beside_the_intact_one(untrained):
    before = pixels(untrained, "intact")
    assert np.array_equal(pixels(untrained, "changed"), before)
    untrained.off.value = ("L1H1", "L0H0")
    assert np.array_equal(pixels(untrained, "intact"), before)
    assert not np.array_equal(pixels(untrained, "changed"), before)


def test_a_relation_written_in_moves_the_objects(explorer):
    explorer.relation.value = "below"
    caption = explorer.captions["changed"].value
    assert "as told" in caption and "not as told" not in caption and "below" in caption


def test_words_can_be_hidden_and_prompts_composed(untrained):
    untrained.hidden.value = ("relation",)
    hidden = untrained.recording.attention[0, 1, ..., SAID.index("relation"), :, :]
    assert (hidden == 0).all()
    untrained.parts[2].value = "to the left of"
    assert untrained.prompt.value == "red square is to the left of blue circle"
    assert untrained.recording.prompts == [untrained.prompt.value]


def test_an_unknown_word_is_explained_and_nothing_is_lost(untrained):
    kept = untrained.recording
    untrained.prompt.value = "red <hexagon> is above blue circle"
    message = untrained.message.value
    assert "unknown word &#x27;&lt;hexagon&gt;&#x27;" in message and "nearest known" in message
    assert ready(untrained) and untrained.recording is kept
    untrained.prompt.value = "red triangle is above blue circle"
    assert untrained.message.value == ""
    assert untrained.recording.prompts == ["red triangle is above blue circle"]


def test_an_error_stays_until_mended_and_the_pictures_keep_their_name(untrained):
    before = shown(untrained)
    untrained.prompt.value = "hexagon"
    said = untrained.message.value
    assert "hexagon" in said and f"Shown is still: {PROMPT}" in said and shown(untrained) == before
    for control, value in (("layer", 1), ("step", 3), ("seed", 8)):
        getattr(untrained, control).value = value
        assert untrained.message.value == said and untrained.recording.prompts == [PROMPT]
    assert shown(untrained) != before                                  # one can look on meanwhile
    untrained.prompt.value = "square is above circle"
    assert untrained.message.value == "" and untrained.recording.prompts == [untrained.prompt.value]


def test_the_menus_follow_a_typed_prompt(untrained):
    untrained.prompt.value = "blue circle is left of red square"
    assert [p.value for p in untrained.parts] == ["blue", "circle", "left of", "red", "square"]
    untrained.parts[0].value = "blue"
    assert untrained.prompt.value == "blue circle is left of red square"
    untrained.parts[4].value = "triangle"
    assert untrained.prompt.value == "blue circle is left of red triangle"
    untrained.prompt.value = "square is above circle"
    assert [p.value for p in untrained.parts] == ["", "square", "above", "", "circle"]
    assert untrained.recording.prompts == ["square is above circle"]


def test_two_changes_in_a_row_are_both_shown(untrained):
    untrained.off.value = ("L0H1",)
    untrained.hidden.value = ("shape2",)
    bench, change = untrained.bench(), untrained.change()
    assert change.off == ((0, 1),) and change.hidden == ("shape2",)
    again = record(bench, [PROMPT], {"changed": change}, [7])
    assert untrained.recording.latents.equal(again.latents)
    untrained.off.value = untrained.hidden.value = ()
    assert untrained.captions["changed"].value == "changed: nothing yet"


def test_a_change_while_it_draws_is_not_lost(untrained, monkeypatch):
    original, pending = recordings.run, [9]

    def interrupted(*args, **options):
        if pending:
            untrained.seed.value = pending.pop()
        return original(*args, **options)
    monkeypatch.setattr(recordings, "run", interrupted)
    untrained.seed.value = 8
    again = record(untrained.bench(), [PROMPT], {}, [9])
    assert untrained.seed.value == 9 and untrained.recording.latents.equal(again.latents)


def test_a_word_that_the_prompt_lacks_is_explained(untrained):
    untrained.role.value = "colour1"
    untrained.prompt.value = "square is above circle"
    message = untrained.message.value
    assert "holds no colour1; choose from shape1, relation, shape2" in message and ready(untrained)


def test_a_seed_out_of_range_is_named_and_what_was_drawn_stays(untrained):
    before = untrained.recording
    untrained.seed.value = -1
    assert "seed is -1; give a whole number from 0 to 2147483647" in untrained.message.value
    assert untrained.recording is before and ready(untrained)


def test_controls_are_disabled_while_it_draws(untrained, monkeypatch):
    states, original = [], recordings.run

    def watched(*args, **options):
        states.append([c.disabled for c in untrained.controls])
        return original(*args, **options)
    monkeypatch.setattr(recordings, "run", watched)
    untrained.seed.value = 11
    assert states and all(map(all, states)) and ready(untrained)


def test_an_unexpected_error_is_raised_and_leaves_the_controls_usable(untrained, monkeypatch):
    def fail(*a, **k):
        raise RuntimeError("no memory")
    with monkeypatch.context() as m:
        m.setattr(recordings, "run", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            untrained.seed.value = 12
    assert ready(untrained)
    untrained.seed.value = 13
    assert untrained.message.value == ""


def test_another_model_brings_its_own_heads_and_its_own_way_to_write_a_relation(explorer, saved):
    explorer.model.options = (*explorer.model.options, str(saved))
    explorer.layer.value = 5
    explorer.model.value = str(saved)
    assert explorer.off.options == ("L0H0", "L0H1", "L1H0", "L1H1") and explorer.layer.value == 1
    explorer.relation.value = "left"
    assert "no relation heads are known" in explorer.message.value and ready(explorer)
    explorer.site.value = "relation"
    assert explorer.message.value == "" and explorer.change().relation == RELATIONS.index("left")


def test_a_model_that_does_not_exist_is_named(saved):
    explorer = Explorer("no-such-model")
    assert "no-such-model" in explorer.message.value and ready(explorer)
    explorer.model.options = (*explorer.model.options, str(saved))
    explorer.model.value = str(saved)
    assert explorer.message.value == "" and explorer.recording is not None


@pytest.mark.parametrize("harm", ["no weights", "no json", "not a model"])
def test_a_broken_folder_is_named_and_the_pictures_stay(untrained, saved, tmp_path, harm):
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    if harm == "no weights":
        shutil.rmtree(broken / "transformer")
    else:
        (broken / "text.json").write_text("{" if harm == "no json" else "[]")
        (broken / "manifest.json").write_text("{}")
    before = shown(untrained)
    untrained.model.options = (*untrained.model.options, str(broken))
    untrained.model.value = str(broken)
    assert "broken" in untrained.message.value and ready(untrained) and shown(untrained) == before
    untrained.layer.value, untrained.seed.value = 1, 3
    assert "broken" in untrained.message.value
    untrained.model.value = str(saved)
    assert untrained.message.value == "" and untrained.recording is not None


def test_outcomes_in_words():
    row = pd.Series({"unique_binding": True, "loose": True, "dx": -3.2, "dy": 40.0})
    assert outcome(row) == "object 1 is 3 px left of and 40 px below object 2, as told"
    assert outcome(row.copy().replace({True: False})) == "an object is missing or doubled"


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab server over a folder with one notebook."""
    source = 'from spatial_circuits.book.widgets import Explorer\nExplorer("rte")'
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "x.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_DATA_DIR": str(tmp_path / "data"),
                        "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}",
               "--LabApp.news_url="]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "JupyterLab stopped"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/x.ipynb"
    finally:
        server.terminate()
        server.wait(30)


def test_in_jupyterlab_a_control_changes_the_picture(chromium, lab):
    from playwright.sync_api import TimeoutError
    page = chromium.new_page(viewport={"width": 1280, "height": 1400})
    page.goto(lab)
    cell = page.locator(".jp-Notebook .jp-CodeCell .cm-content").first
    begun = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]+\]"))
    for _ in range(10):         # until the kernel is there JupyterLab drops what it is told to run
        cell.click(timeout=60_000)
        page.keyboard.press("Control+Enter")
        with contextlib.suppress(TimeoutError):
            begun.first.wait_for(timeout=3_000)
            break
    views = page.locator(".jp-OutputArea img.widget-image, .jp-OutputArea .widget-image img")
    views.nth(4).wait_for(timeout=90_000)
    changed = views.nth(2).get_attribute("src")
    heads = ".widget-select-multiple select, .jupyter-widgets select[multiple]"
    page.locator(heads).first.select_option(["L1H3"])
    other = "([n, old]) => document.querySelectorAll('.jp-OutputArea .widget-image')[n].src !== old"
    page.wait_for_function(other, arg=[2, changed], timeout=60_000)
    idle = "document.querySelectorAll('select:disabled, input:disabled').length === 0"
    page.wait_for_function(idle, timeout=30_000)
    page.close()
