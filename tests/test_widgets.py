"""The explorer's widgets, driven without a browser: set a control, read what is shown."""
import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from spatial_circuits import recording as recordings
from spatial_circuits.explorer import outcome
from spatial_circuits.recording import SAID
from spatial_circuits.scenes import RELATIONS
from spatial_circuits.widgets import SIZE, Explorer, coloured


@pytest.fixture(scope="module")
def shipped():
    return Explorer("rte", seed=7)


@pytest.fixture
def explorer(shipped):
    """The explorer, its controls as they were at first."""
    shipped.model.value, shipped.prompt.value, shipped.seed.value = "rte", "red square is above blue circle", 7
    shipped.off.value = shipped.hidden.value = ()
    shipped.relation.value, shipped.site.value, shipped.scale.value = "as it is", "stream", 1.0
    shipped.layer.value, shipped.head.value, shipped.role.value, shipped.step.value = 0, 0, "relation", 14
    return shipped


def pixels(explorer, view: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(explorer.views[view].value)))


def ready(explorer) -> bool:
    return not any(c.disabled for c in explorer.controls)


def test_the_map_shown_is_the_attention_recorded(explorer):
    explorer.layer.value, explorer.head.value, explorer.step.value, explorer.role.value = 1, 3, 5, "shape2"
    seen = explorer.recording.attention[0, 0, 4, 1, 3, SAID.index("shape2")].float()
    cells = pixels(explorer, "attention")[SIZE // 16::SIZE // 8, SIZE // 16::SIZE // 8]
    assert np.array_equal(cells, coloured(seen, float(seen.max())))
    assert f"up to {float(seen.max()):.0%}" in explorer.captions["attention"].value and "L1H3" in explorer.captions["attention"].value


def test_looking_elsewhere_draws_nothing_anew(explorer, monkeypatch):
    monkeypatch.setattr(recordings, "run", lambda *a, **k: pytest.fail("sampled"))
    before = pixels(explorer, "intact")
    explorer.step.value = 1
    assert not np.array_equal(pixels(explorer, "intact"), before) and ready(explorer) and explorer.message.value == ""


def test_a_head_switched_off_changes_the_picture_beside_the_intact_one(explorer):
    before = pixels(explorer, "intact")
    assert np.array_equal(pixels(explorer, "changed"), before)
    explorer.off.value = ("L1H3", "L0H0")
    assert np.array_equal(pixels(explorer, "intact"), before)
    assert not np.array_equal(pixels(explorer, "changed"), before)


def test_a_relation_written_in_moves_the_objects(explorer):
    explorer.relation.value = "left"
    assert "as told" in explorer.captions["changed"].value and "not as told" not in explorer.captions["changed"].value
    assert "left of" in explorer.captions["changed"].value


def test_words_can_be_hidden_and_prompts_composed(explorer):
    explorer.hidden.value = ("relation",)
    assert (explorer.recording.attention[0, 1, ..., SAID.index("relation"), :, :] == 0).all()
    explorer.parts[2].value = "to the left of"
    assert explorer.prompt.value == "red square is to the left of blue circle" == explorer.recording.prompts[0]


def test_an_unknown_word_is_explained_and_nothing_is_lost(explorer):
    kept = explorer.recording
    explorer.prompt.value = "red <hexagon> is above blue circle"
    assert "unknown word &#x27;&lt;hexagon&gt;&#x27;" in explorer.message.value and "nearest known" in explorer.message.value
    assert ready(explorer) and explorer.recording is kept
    explorer.prompt.value = "red triangle is above blue circle"
    assert explorer.message.value == "" and explorer.recording.prompts == ["red triangle is above blue circle"]


def test_a_word_that_the_prompt_lacks_is_explained(explorer):
    explorer.role.value = "colour1"
    explorer.prompt.value = "square is above circle"
    assert "holds no colour1; choose from shape1, relation, shape2" in explorer.message.value and ready(explorer)


def test_controls_are_disabled_while_it_draws(explorer, monkeypatch):
    states = []
    original = recordings.run
    monkeypatch.setattr(recordings, "run", lambda *a, **k: (states.append([c.disabled for c in explorer.controls]), original(*a, **k))[1])
    explorer.seed.value = 11
    assert states and all(map(all, states)) and ready(explorer)


def test_an_unexpected_error_is_not_swallowed_and_leaves_the_controls_usable(explorer, monkeypatch):
    def fail(*a, **k):
        raise RuntimeError("no memory")
    with monkeypatch.context() as m:
        m.setattr(recordings, "run", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            explorer.seed.value = 12
    assert ready(explorer)
    explorer.seed.value = 13
    assert explorer.message.value == ""


def test_another_model_brings_its_own_heads_and_needs_its_own_way_to_write_a_relation(explorer, saved):
    explorer.model.options = (*explorer.model.options, str(saved))
    explorer.layer.value = 5
    explorer.model.value = str(saved)
    assert explorer.off.options == ("L0H0", "L0H1", "L1H0", "L1H1") and explorer.layer.value == 1
    explorer.relation.value = "left"
    assert "no relation heads are known" in explorer.message.value and ready(explorer)
    explorer.site.value = "relation"
    assert explorer.message.value == "" and explorer.change().relation == RELATIONS.index("left")


def test_a_model_that_does_not_exist_is_named():
    explorer = Explorer("no-such-model")
    assert "no-such-model" in explorer.message.value and ready(explorer)
    explorer.model.value = "rte"
    assert explorer.message.value == "" and explorer.recording is not None


def test_outcomes_in_words():
    import pandas as pd
    row = pd.Series({"unique_binding": True, "loose": True, "dx": -3.2, "dy": 40.0})
    assert outcome(row) == "object 1 is 3 px left of and 40 px below object 2, as told"
    assert outcome(row.copy().replace({True: False})) == "an object is missing or doubled"
    assert torch.equal(torch.tensor(coloured(torch.zeros(8, 8), 0.0)), torch.tensor(coloured(torch.zeros(8, 8), 1.0)))


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab server over a folder with one notebook."""
    cell = nbformat.v4.new_code_cell('from spatial_circuits.widgets import Explorer\nExplorer("rte")')
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}), tmp_path / "x.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_DATA_DIR": str(tmp_path / "data")}
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=",
                               f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url="], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    cell, begun = page.locator(".jp-Notebook .jp-CodeCell .cm-content").first, page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]+\]"))
    for _ in range(10):                                              # until the kernel is there JupyterLab drops what it is told to run
        cell.click(timeout=60_000)
        page.keyboard.press("Control+Enter")
        with contextlib.suppress(TimeoutError):
            begun.first.wait_for(timeout=3_000)
            break
    views = page.locator(".jp-OutputArea img.widget-image, .jp-OutputArea .widget-image img")
    views.nth(4).wait_for(timeout=90_000)
    changed = views.nth(2).get_attribute("src")
    page.locator(".widget-select-multiple select, .jupyter-widgets select[multiple]").first.select_option(["L1H3"])
    page.wait_for_function("([n, old]) => document.querySelectorAll('.jp-OutputArea .widget-image')[n].src !== old", arg=[2, changed], timeout=60_000)
    page.wait_for_function("document.querySelectorAll('select:disabled, input:disabled').length === 0", timeout=30_000)
    page.close()
