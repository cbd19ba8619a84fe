"""The live model in a browser, from a file with the network off: what it draws is what Python draws."""
import os
import time
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import torch

from spatial_circuits.analyses.heads import parse_head
from spatial_circuits.book.explorer import LiveModel, outcome
from spatial_circuits.book.recording import Change, Workbench, decoded, record
from spatial_circuits.claims.population import circuit_roles
from spatial_circuits.data.metrics import score
from spatial_circuits.data.scenes import RELATIONS
from spatial_circuits.live import bundle
from spatial_circuits.model.store import load
from spatial_circuits.text.counterparts import restated

MODEL, OTHER = bundle.LIVE_MODELS
PROMPT, SEED = "red square is above blue circle", 1
PATIENCE = 180_000            # ms; on a quiet machine a picture takes about one second


@pytest.fixture(scope="module")
def page(tmp_path_factory, users_cache, page_runtime) -> Path:
    """The page that `spatial-circuits live` writes; what it is made of is kept from one run of the tests to the next."""
    with pytest.MonkeyPatch.context() as patch:
        users_cache(patch)
        return bundle.write_live(tmp_path_factory.mktemp("site") / "live", page=LiveModel(PROMPT, SEED, base="")._repr_html_()) / "index.html"


class Tab:
    """A tab with the page, and what it complained of."""

    def __init__(self, context, address: str):
        self.tab, self.said, self.drawn = context.new_page(), [], 0
        self.tab.on("console", lambda m: self.said.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda e: self.said.append(str(e)))
        self.tab.on("request", lambda r: None if r.url.startswith(("file:", "blob:", "data:")) else self.said.append(r.url))
        self.tab.goto(address)

    def start(self) -> float:
        """Ask for the model; seconds until its picture is there."""
        return self.after(lambda: self.tab.get_by_role("button", name="MB)").click())

    def after(self, act) -> float:
        """Do something and wait for what it draws; seconds."""
        before, began = self.tab.evaluate("document.querySelector('.sc').dataset.drawn ?? 'nothing'"), time.perf_counter()
        act()
        self.tab.wait_for_function("before => (document.querySelector('.sc').dataset.drawn ?? 'nothing') !== before", arg=before, timeout=PATIENCE)
        return time.perf_counter() - began

    def text(self) -> str:
        return self.tab.locator(".sc output").text_content()

    def captions(self) -> list[str]:
        return self.tab.locator(".side figure:first-child figcaption").all_text_contents()

    def latents(self) -> list[torch.Tensor]:
        """Latents [4, 16, 16] of the pictures on the page."""
        found = self.tab.evaluate("spatialCircuits.shown().map((side) => Array.from(side.run.latents))")
        return [torch.tensor(x).view(4, 16, 16) for x in found]


@pytest.fixture(scope="module")
def browser(chromium):
    context = chromium.new_context(offline=True, viewport={"width": 1280, "height": 1000})
    yield context
    context.close()


@pytest.fixture(scope="module")
def tab(browser, page):
    """A tab in which the model was started, and in how many seconds."""
    tab = Tab(browser, page.as_uri())
    tab.seconds = tab.start()
    yield tab
    tab.tab.close()


@pytest.fixture(scope="module")
def bench():
    model = load(MODEL)
    heads = circuit_roles(model.folder)
    return Workbench(model, [parse_head(h) for h in heads["relation"]], readers=[parse_head(h) for h in heads["object"]])


def agree(tab: Tab, bench: Workbench, prompt: str, change: Change) -> None:
    """The pictures on the page, intact and changed, are Python's: latents within 1e-3, the same verdicts in words."""
    wanted = record(bench, [prompt], {"changed": change}, [SEED]).latents[0]
    found = tab.latents()
    assert [(a - b).abs().max().item() < 1e-3 for a, b in zip(found, wanted)] == [True, True]
    assert (found[0] - found[1]).abs().max() > 0.05                        # the change did something
    told = [prompt, prompt if change.relation is None else restated(prompt, change.relation)]
    verdicts = [outcome(row) for _, row in score(decoded(bench.model, wanted), told).iterrows()]
    assert [verdict in caption for verdict, caption in zip(verdicts, tab.captions())] == [True, True], (verdicts, tab.captions())


def test_the_first_picture_is_there_and_is_pythons(tab, bench):
    assert 0.3 < tab.seconds < PATIENCE / 1000
    found, = tab.latents()
    wanted = bench.model.latents([PROMPT], [SEED])[0]
    assert (found - wanted).abs().max() < 1e-3
    verdict = outcome(next(score(bench.model.vae.decode(wanted[None]), [PROMPT]).iterrows())[1])
    assert verdict in tab.captions()[0] and verdict in tab.text() and "Drawn in" in tab.text()
    means = tab.tab.locator(".heads button").evaluate_all("(all) => all.map((b) => [Number(b.ariaLabel.match(/mean (\\d+)/)[1]), b.ariaChecked === 'true'])")
    assert max(means)[0] == next(mean for mean, checked in means if checked)      # at the step that is shown
    assert tab.tab.locator(".key").text_content().startswith("Underlined heads:relationobject")


def test_a_head_is_switched_off_from_the_keyboard(tab, bench):
    head = circuit_roles(bench.model.folder)["object"][0]
    tab.tab.get_by_role("radio", name=head).focus()
    tab.tab.keyboard.press("ArrowRight")
    tab.tab.keyboard.press("ArrowLeft")
    seconds = tab.after(lambda: tab.tab.get_by_role("combobox", name=head).select_option("off: its mean instead"))
    agree(tab, bench, PROMPT, Change(off=[parse_head(head)]))
    assert f"without {head}" in tab.captions()[1] and seconds < PATIENCE / 1000
    tab.after(lambda: tab.tab.get_by_role("button", name=f"put {head} back").click())
    assert len(tab.captions()) == 1


def test_a_word_is_hidden(tab, bench):
    tab.after(lambda: tab.tab.get_by_role("group", name="words to hide").get_by_role("button", name="square").click())
    agree(tab, bench, PROMPT, Change(hidden=("shape1",)))
    tab.after(lambda: tab.tab.get_by_role("button", name="Undo all changes").click())


@pytest.mark.parametrize("site", ["into the residual stream", "into the relation word"])
def test_another_relation_is_written_in(tab, bench, site):
    to = RELATIONS.index("below")
    tab.after(lambda: tab.tab.get_by_role("combobox", name="Write in").select_option("below"))
    if "stream" not in site:
        tab.after(lambda: tab.tab.get_by_role("combobox", name="where").select_option(site))
    agree(tab, bench, PROMPT, Change(relation=to, site="stream" if "stream" in site else "relation"))
    tab.after(lambda: tab.tab.get_by_role("button", name="Undo all changes").click())


def test_an_embedding_is_taken_from_another_sentence(tab, bench):
    other, its = "red square is below blue circle", tab.tab.get_by_role("combobox", name="its word")
    assert not its.is_visible()                                             # nothing to choose yet
    tab.tab.get_by_role("textbox", name="taken from the sentence").fill(other)
    tab.after(lambda: tab.tab.get_by_role("combobox", name="Embedding of").select_option("4 above"))
    assert its.is_visible() and its.locator("option:checked").text_content() == "4 below"
    batch = bench.model.encoder.encode(["", PROMPT, other])
    batch.embeddings[1, 3] = batch.embeddings[2, 3]
    from dataclasses import replace

    from spatial_circuits.text.prepared import Prepared
    wanted = replace(bench.model, encoder=Prepared(["", PROMPT], batch[[0, 1]])).latents([PROMPT], [SEED])[0]
    assert (tab.latents()[1] - wanted).abs().max() < 1e-3
    tab.after(lambda: tab.tab.get_by_role("button", name="Undo all changes").click())


def test_an_unknown_word_is_explained_and_the_picture_stays(tab):
    field = tab.tab.get_by_role("textbox", name="sentence", exact=True)
    field.fill("red sqare is above blue circle")
    tab.after(lambda: field.press("Enter"))
    assert f"{MODEL} has no word “sqare”; nearest known: square" in tab.text() and "Shown is still" in tab.text()
    field.fill(PROMPT)
    tab.after(lambda: field.press("Enter"))
    assert "Drawn in" in tab.text()


def test_a_number_that_may_not_stand_in_a_field_is_named_and_the_field_keeps_its_own(tab):
    """Nothing is clamped or rounded in silence, in any of the fields."""
    named, group = tab.tab.locator(".sc [role=status]"), tab.tab.get_by_role("group")     # the last that holds a text is the innermost
    tab.after(lambda: tab.tab.get_by_role("radio", name="L0H1").click() or tab.tab.get_by_role("combobox", name="L0H1").select_option("scaled"))
    tab.after(lambda: tab.tab.get_by_role("combobox", name="Write in").select_option("below"))
    fields = {"seed": tab.tab.get_by_label("Seed", exact=True), "steps": tab.tab.get_by_label("Steps", exact=True),
              "guidance": tab.tab.get_by_label("Guidance", exact=True),
              "L0H1 times": group.filter(has_text="Change a head").last.get_by_label("times"),
              "relation times": group.filter(has_text="Another relation").last.get_by_label("times")}
    before = tab.tab.evaluate("document.querySelector('.sc').dataset.drawn")
    for name, typed, allowed in (("seed", "-1", "a whole number from 0 to 4294967295"), ("seed", "2.5", "a whole number from 0 to 4294967295"),
                                 ("steps", "99", "a whole number from 1 to 40"), ("steps", "", "a whole number from 1 to 40"),
                                 ("guidance", "31", "a number from -30 to 30"), ("L0H1 times", "9", "a number from -4 to 4"),
                                 ("relation times", "-5", "a number from -4 to 4")):
        kept = fields[name].input_value()
        fields[name].fill(typed)
        fields[name].press("Enter")
        assert named.locator("li").all_text_contents() == [f"{name}={typed or 'nothing'}: {allowed}."] and named.is_visible()
        assert fields[name].input_value() == kept and kept not in ("", typed)
    assert tab.tab.evaluate("document.querySelector('.sc').dataset.drawn") == before       # nothing was asked for
    fields["L0H1 times"].fill("2")
    tab.after(lambda: fields["L0H1 times"].press("Enter"))
    assert not named.is_visible() and "L0H1 times 2" in tab.captions()[1]
    tab.after(lambda: tab.tab.get_by_role("button", name="Undo all changes").click())


def test_what_is_still_to_be_chosen_is_said(tab):
    group = tab.tab.get_by_role("group").filter(has_text="Another relation").last
    group.get_by_label("times").fill("2")
    group.get_by_label("times").press("Enter")
    assert "Choose the relation" in tab.text()
    tab.tab.get_by_role("textbox", name="taken from the sentence").fill("red square is below blue triangle")
    tab.tab.get_by_role("textbox", name="taken from the sentence").press("Enter")
    assert "Choose the word" in tab.text()


def test_what_is_not_drawn_yet_is_neither_shown_nor_saved(tab):
    """Captions tell of the picture that is there, whatever was asked for since."""
    field, head = tab.tab.get_by_role("textbox", name="sentence", exact=True), tab.tab.get_by_role("radio", name="L0H1")
    field.fill("red sqare abve blue circle")                                  # the word that was chosen is not in it
    tab.after(lambda: field.press("Enter"))
    head.click()
    assert "undefined" not in tab.tab.locator(".sides").text_content() and "L0H1 to “above”" in tab.tab.locator(".sides").text_content()
    field.fill(PROMPT)
    tab.after(lambda: field.press("Enter"))
    more, before = tab.tab.get_by_label("Steps", exact=True), tab.captions()

    def hurried() -> None:
        tab.tab.evaluate("""() => {
          const named = (name) => [...document.querySelectorAll(".sc button")].find((b) => b.textContent === name), steps = document.querySelector(".sc input[max='40']");
          steps.value = 40; steps.dispatchEvent(new Event("change")); named("L0H2").click(); named("Save picture").click();
          globalThis.hurried = document.querySelector(".sc output").textContent; }""")
    tab.after(hurried)
    assert "No picture is drawn yet" in tab.tab.evaluate("globalThis.hurried") and len(tab.captions()) == 1
    more.fill("14")
    tab.after(lambda: more.press("Enter"))
    assert tab.captions() == before and tab.said == []


def test_what_a_link_says_wrongly_is_named_and_there_is_no_second_equal_picture(tab, browser, page):
    wrong = Tab(browser, f"{page.as_uri()}#live&hide=99&seed=7&steps=99&heads=L9H9%3Amean&model=evil")
    wrong.start()
    named = wrong.tab.locator(".sc [role=status]")
    told = named.locator("li").all_text_contents()
    assert [sentence.partition(":")[0] for sentence in told] == ["model=evil", "steps=99", "heads=L9H9", "hide=99"] and named.is_visible()
    assert len(wrong.captions()) == 1 and wrong.tab.get_by_label("Seed").input_value() == "7" and wrong.said == []
    wrong.after(lambda: wrong.tab.evaluate("location.hash = '#live&text=red+sqare'"))
    assert "no word “sqare”" in named.text_content() and len(wrong.captions()) == 1
    wrong.after(lambda: wrong.tab.get_by_role("button", name="Next seed").click())
    assert not named.is_visible()
    wrong.tab.close()


def test_two_models_draw_the_same_sentence_and_one_more_word_changes_it(tab, bench):
    tab.after(lambda: tab.tab.get_by_role("combobox", name="Beside it").select_option(index=1))
    tab.after(lambda: tab.tab.get_by_role("button", name="Add “the”").click())
    sentence = "red square is above the blue circle"
    assert tab.tab.get_by_role("textbox", name="sentence", exact=True).input_value() == sentence
    for name, found, caption in zip((MODEL, OTHER), tab.latents(), tab.captions()):
        wanted = load(name).latents([sentence], [SEED])[0]
        assert (found - wanted).abs().max() < 1e-3 and caption.startswith(f"{name}, intact")
    assert "reads the relation from" in tab.tab.locator(".sc").text_content()


def test_a_link_opens_what_was_seen(tab, browser, page):
    tab.tab.get_by_role("slider").fill("3")
    address = tab.tab.evaluate("location.href")
    told = {key: value[0] for key, value in parse_qs(address.split("#live&")[1]).items()}
    assert told["beside"] == OTHER and told["step"] == "3" and told["text"] == "red square is above the blue circle"
    again = Tab(browser, address + "&heads=L0H0%3Azero")                         # and a change, written by hand
    assert "Open the linked finding" in again.tab.get_by_role("button", name="MB)").text_content()
    again.start()
    assert len(again.captions()) == 3 and "without L0H0" in again.captions()[1] and "step 3" in again.captions()[0]
    assert again.said == [] and tab.said == []
    again.tab.close()


def test_the_picture_is_saved_as_png(tab, tmp_path):
    from PIL import Image
    with tab.tab.expect_download() as download:
        tab.tab.get_by_role("button", name="Save picture").click()
    download.value.save_as(tmp_path / "saved.png")
    assert Image.open(tmp_path / "saved.png").size[0] == 2 * 256 + 3 * 16
    assert download.value.suggested_filename == "red-square-is-above-the-blue-circle-1.png"


def test_nothing_but_the_index_is_loaded_before_it_is_asked_for(browser, page):
    context_page, loaded = browser.new_page(), []
    context_page.on("request", lambda r: loaded.append(os.path.basename(r.url)))
    context_page.goto(page.as_uri())
    context_page.get_by_role("button", name="MB)").wait_for()
    assert loaded == ["index.html", "index.js"]
    assert sum((page.parent / name).stat().st_size for name in loaded) < 200_000
    context_page.close()


def test_it_is_accessible_and_fits_a_phone(tab):
    import axe_playwright_python
    tab.tab.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text())
    found = tab.tab.evaluate("""async () => (await axe.run({preload: false})).violations.filter((v) => ["serious", "critical"].includes(v.impact))
      .map((v) => v.id + ": " + v.nodes.map((n) => n.html.slice(0, 120)).join(" | "))""")
    assert found == []
    tab.tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.tab.evaluate("[...document.querySelectorAll('.sc input.sentence')].filter((i) => i.scrollWidth > i.clientWidth).length") == 0
    small = "[...document.querySelectorAll('.sc :is(select, button, input)')].map((b) => b.getBoundingClientRect()).filter((b) => b.width && (b.height < 16 || b.width < 24)).length"
    assert tab.tab.evaluate(small) == 0
    tab.tab.set_viewport_size({"width": 1280, "height": 1000})
