"""The rendered pages, as files in a real browser: whole, offline, legible, accessible."""
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree, ignore_patterns
from urllib.parse import unquote, urlsplit

import pytest

from spatial_circuits.book.runner import build_pages, toc

TOP = Path(__file__).resolve().parents[1]
BOOK = TOP / "book"
PAGES = toc(BOOK)


@pytest.fixture(scope="module")
def site(tmp_path_factory, users_cache) -> Path:
    """The built book; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    for file in TOP.glob("_*.yml"):
        (folder / file.name).write_bytes(file.read_bytes())
    copytree(TOP / "_static", folder / "_static")
    copytree(BOOK, folder / "book", ignore=ignore_patterns("*.partial.ipynb", ".*"))
    with pytest.MonkeyPatch.context() as patch:
        users_cache(patch)
        return build_pages(folder).parent


class Page(HTMLParser):
    """The links and anchors of an HTML page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src", "data") if found.get(key)]
        if tag == "meta" and (found.get("http-equiv") or "").lower() == "refresh":
            self.links.append(found["content"].partition("url=")[2])


def broken(site: Path) -> list[str]:
    """Links of a folder of HTML pages to a file or an anchor that is not there, as "page -> link"."""
    read = {path.resolve(): Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    return [f"{path.name} -> {link}" for path, page in read.items() for link in page.links
            if not resolves(link, path, read)]


def resolves(link: str, path: Path, read: dict[Path, Page]) -> bool:
    """Whether an internal link leads somewhere; links to other hosts and inline data are not followed."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return False
    return not parts.fragment or target not in read or unquote(parts.fragment) in read[target].anchors


def test_the_link_check_finds_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="b.html#y"><a href="#x"><a href="#no">'
                                     '<img src="no.png"><a href="http://no.example"><a href="b.html#no">')
    (tmp_path / "b.html").write_text('<p id="y"><meta http-equiv="Refresh" content="0; url=no.html">')
    assert sorted(broken(tmp_path)) == ["a.html -> #no", "a.html -> b.html#no", "a.html -> no.png",
                                        "b.html -> no.html"]


def test_every_page_is_there_and_its_links_resolve(site):
    assert (site / "index.html").is_file() and all((site / "book" / f"{name}.html").is_file() for name in PAGES)
    assert broken(site) == []


def test_the_models_of_live_figures_are_in_the_site(site, page_runtime):
    from spatial_circuits.live import bundle
    said = (site / "_static" / "live" / "index.js").read_text()
    assert all((site / "_static" / "live" / f"{name}.js").is_file() for name in bundle.LIVE_MODELS), said


def test_evidence_and_running_are_one_click_from_the_first_page(site):
    links = {urlsplit(link).path for link in Page(site / "book" / "index.html").links}
    import re

    from spatial_circuits.claims.claims import CLAIMS
    chapters = {re.search(r"\((.*)\.ipynb", c.chapter)[1] for c in CLAIMS if ".ipynb" in c.chapter}
    assert {f"{c}.html" for c in chapters} | {"how_to.html", "18_explorer.html"} <= links


def test_from_the_first_page_a_click_leads_to_a_head_that_is_off(visit, site):
    tab, _ = visit(site / "book" / "index.html")
    tab.get_by_role("link", name="Switch a head off").click()
    tab.wait_for_function("() => [...document.querySelectorAll('.sc')].every((f) => f.dataset.ready)")
    chosen = tab.locator("#figure-2").get_by_role("combobox", name="Change").locator("option:checked")
    assert chosen.text_content().startswith("without L") and tab.url.endswith("18_explorer.html#figure-2")


def test_the_first_page_has_an_answer_for_every_claim_and_is_light(visit, site):
    from spatial_circuits.claims.claims import CLAIMS
    page = site / "book" / "index.html"
    tab, _ = visit(page)
    assert tab.locator(".sc-claims details").count() == len(CLAIMS)
    assert tab.locator("ol > li:has(.verdict)").count() == 5
    assert tab.evaluate(SERIOUS, {}) == []
    tab.evaluate("document.querySelectorAll('.sc-claims details').forEach((d) => { d.open = true; })")
    assert tab.evaluate(SERIOUS, {"runOnly": ["color-contrast"]}) == []
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=3000)
    assert tab.locator(".sc-claims summary .sc-cell:last-child").first.bounding_box()["width"] > 40
    assert tab.evaluate("Math.max(...[...document.querySelectorAll('.sc-claims .sc-row > :last-child')].map((e) => e.getBoundingClientRect().right))") <= 390
    assert page.stat().st_size < 400_000


def test_a_verdict_of_the_first_page_opens_the_row_it_points_to(visit, site):
    tab, _ = visit(site / "book" / "index.html")
    for claim in ("C6", "C14"):
        tab.locator(f".verdict a[href='#claim-{claim}']").click()
        tab.locator(f"#claim-{claim}").wait_for(state="visible", timeout=3000)
        row = tab.locator(f"details:has(#claim-{claim}) summary").bounding_box()
        assert 0 < row["y"] < 300                                           # its name is in sight, below the bar


def test_no_link_leads_to_what_stays_folded(site):
    """A link opens the folds around its target, but not a target that is itself a fold."""
    import re
    folds = {path.name: set(re.findall(r'<details[^>]* id="([^"]+)"', path.read_text())) for path in (site / "book").glob("*.html")}
    assert [(path.name, link) for path in (site / "book").glob("*.html") for link in Page(path).links
            if urlsplit(link).fragment in folds.get(Path(urlsplit(link).path).name or path.name, set())] == []


def test_a_newcomer_switches_a_head_off_within_a_minute(chromium, site, page_runtime):
    """From page one: a click loads the model, a choice switches off the head that is shown, the second picture is there."""
    import time
    context = chromium.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab, began = context.new_page(), time.perf_counter()
    drawn = "count => Number(document.querySelector('.sc[data-drawn]')?.dataset.drawn ?? 0) >= count"
    tab.goto((site / "book" / "index.html").as_uri())
    tab.get_by_role("button", name="Load the live model").click()
    tab.wait_for_function(drawn, arg=1, timeout=120_000)
    loaded = time.perf_counter() - began
    tab.get_by_role("group", name="Change a head").get_by_role("combobox").first.select_option("off: its mean instead")
    tab.wait_for_function(drawn, arg=2, timeout=120_000)
    seconds = time.perf_counter() - began
    said = tab.locator(".side figure:first-child figcaption").all_text_contents()
    assert len(said) == 2 and "intact" in said[0] and "without L" in said[1]
    print(f"first picture after {loaded:.1f} s, second after {seconds:.1f} s: one click, one choice")
    assert seconds < 60
    context.close()


def test_a_reference_to_a_figure_says_its_number(site):
    import re
    found = [m for page in (site / "book").glob("*.html") for m in re.findall(r'href="(\d*)\w+\.html#figure-(\d+)">Figure ([\d.]+)<', page.read_text())]
    assert len(found) >= 6 and all(f"{int(page)}.{figure}" == number for page, figure, number in found)


def test_every_work_in_the_bibliography_is_cited_in_a_chapter(site):
    import re
    known = set(re.findall(r"^@\w+{(\w+),", (BOOK / "references.bib").read_text(), re.M))
    cited = {urlsplit(link).fragment for name in PAGES for link in Page(site / "book" / f"{name}.html").links
             if urlsplit(link).path == "bibliography.html"} - {""}
    assert known == cited and known <= Page(site / "book" / "bibliography.html").anchors


@pytest.fixture(scope="module")
def visit(chromium, site):
    """A function page -> (tab, what it complained of): the page read from its file, with the network off."""
    import axe_playwright_python
    context = chromium.new_context(offline=True, viewport={"width": 1280, "height": 900}, color_scheme="light")
    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
    tab, said = context.new_page(), []
    tab.on("console", lambda m: said.append(f"console: {m.text}") if m.type == "error" else None)
    tab.on("pageerror", lambda e: said.append(f"error: {e}"))
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else said.append(f"request: {r.url}"))

    def go(page: Path):
        said.clear()
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.goto(page.as_uri())
        tab.wait_for_function("() => !window.MathJax || !MathJax.startup || document.querySelectorAll('.math').length <= "
                              "document.querySelectorAll('mjx-container').length")
        tab.wait_for_function("() => [...document.querySelectorAll('.sc')].every((f) => f.dataset.ready)")
        tab.evaluate(axe)
        return tab, said
    yield go
    context.close()


SERIOUS = """async (rules) => (await axe.run(document, {resultTypes: ["violations"], preload: false, ...rules})).violations
  .filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => v.id + ": " + v.nodes.map((n) => n.html.slice(0, 120)).join(" | "))"""


# What of an article lies beyond the page and in no box that scrolls. Below a formula lies its MathML, which is not seen.
BEYOND = """() => {
  const wide = document.documentElement.clientWidth, out = [];
  const boxed = (e) => { for (let p = e; p && p !== document.body; p = p.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(p).overflowX) && p.getBoundingClientRect().right <= wide + 1) return true; };
  for (const e of document.querySelectorAll(".bd-article *:not(mjx-assistive-mml, mjx-assistive-mml *, .hidden)")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.height && box.right > wide + 1 && !boxed(e)) out.push(e.outerHTML.slice(0, 120));
  }
  return out; }"""
# Formulas that do not scroll, or do not show that they do; columns of tables that touch.
UNBOXED = """() => [
  ...[...document.querySelectorAll(".bd-article mjx-container[display=true]")].filter((m) => getComputedStyle(m).overflowX !== "auto" ||
    (m.scrollWidth > m.clientWidth && getComputedStyle(m).backgroundImage === "none")),
  ...[...document.querySelectorAll(".bd-article table.dataframe td")].filter((td) => parseFloat(getComputedStyle(td).paddingLeft) < 4),
].map((e) => e.outerHTML.slice(0, 120))"""
# Boxes that scroll and do not fade where there is more, or fade and do not scroll. Of a figure the image fades.
UNFADED = """() => [...document.querySelectorAll(".bd-article :is(.highlight > pre, .cell_output, .output, .pst-scrollable-table-container)")].filter((box) =>
  (box.scrollWidth > box.clientWidth) !== (getComputedStyle(box.querySelector(":scope > figure > img") ?? box).maskImage !== "none")).map((e) => e.outerHTML.slice(0, 120))"""
CUT = """() => [...document.querySelectorAll(".bd-article div.cell_input pre")].filter((p) => p.scrollWidth > p.clientWidth).map((p) => p.textContent.slice(0, 200))"""
FOLDS = "open => document.querySelectorAll('details.hide').forEach((fold) => { fold.open = open; })"


def test_a_page_folds_the_code_that_a_reader_does_not_need(site):
    from spatial_circuits.book import notebooks
    from spatial_circuits.book.folding import folded
    cells = [cell.source for cell in notebooks.load_notebook(BOOK / "09_ablation.ipynb").cells if cell.cell_type == "code"]
    shown = (site / "book" / "09_ablation.html").read_text()
    assert shown.count('<details class="admonition hide') == sum(folded(cells)) > len(cells) / 2
    assert (site / "book" / "tour.html").read_text().count('<details class="admonition hide') == 2      # it teaches code


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_offline_legible_and_accessible(visit, site, name):
    tab, said = visit(site / "book" / f"{name}.html")
    assert said == []
    assert tab.evaluate("[...document.images].filter((i) => !i.alt.trim() || !i.naturalWidth).map((i) => i.outerHTML.slice(0, 200))") == []
    assert tab.evaluate("document.querySelectorAll('mjx-merror, .MathJax_Error').length") == 0
    tab.evaluate(FOLDS, True)                                                   # folded code has to fit as well
    for width in (390, 1280):
        tab.set_viewport_size({"width": width, "height": 844})
        tab.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width, timeout=3000)  # the side bars slide into place
        assert tab.evaluate(BEYOND) == [] and tab.evaluate(UNBOXED) == []
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert tab.evaluate(UNFADED) == []
    assert tab.evaluate(CUT) == []                                              # 88 characters fit the column
    tab.evaluate(FOLDS, False)
    spared = "dl.py ~ dl.py" if name == "01_dataset" else "dl.py ~ dl.py, .highlight, mjx-container"
    tab.evaluate("spared => document.querySelectorAll(spared).forEach((e) => e.remove())", spared)  # alike everywhere, and slow: each kind is seen once
    assert tab.evaluate(SERIOUS, {}) == []
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.wait_for_function("() => document.getAnimations().every((a) => a.playState !== 'running' || a.timeline !== document.timeline)")  # colours fade into the dark
    assert tab.evaluate(SERIOUS, {"runOnly": ["color-contrast"]}) == []
    assert said == []


def test_the_explorer_in_the_page_holds_what_the_notebook_recorded(visit, site):
    import json
    import re

    from packing import unpacked

    from spatial_circuits.book import notebooks
    tab, _ = visit(site / "book" / "18_explorer.html")
    nb = notebooks.load_notebook(BOOK / "18_explorer.ipynb")
    htmls = [o.data["text/html"] for c in nb.cells for o in c.get("outputs", []) if 'class="sc"' in str(o.get("data", {}).get("text/html", ""))]
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', htmls[1], re.S)[1].replace("<\\/", "</"))
    P, C, S, L, H, R = data["shape"]
    heads = [h for h in data["conditions"] if h.startswith("without")]
    assert P >= 16 and C == 2 + len(data["members"]) == 2 + len(heads) and len(htmls) == 3    # the first is the live model
    values = unpacked(data["attention"], (*data["shape"], 8, 8))
    figure = tab.locator(".sc").nth(1)
    figure.get_by_role("combobox", name="Prompt").select_option(index=3)
    figure.get_by_role("combobox", name="Change").select_option(index=C - 1)
    figure.get_by_role("radio", name=f"L{L - 1}H{H - 1}").click()
    figure.get_by_role("slider").fill(str(S - 1))
    seen = values[3, C - 1, S - 1, L - 1, H - 1, data["role"]]
    said = figure.locator("output").text_content()
    mean = float(re.search(r"mean ([0-9.]+) %", said)[1])                  # of 4.25, JavaScript makes 4.3 and Python 4.2
    assert f"L{L - 1}H{H - 1}" in said and abs(mean - seen.mean()) < 0.0501 and f"most {seen.max()} %" in said


@pytest.mark.parametrize("page", ["index", "18_explorer"])
def test_a_phone_shows_controls_large_enough_to_touch(visit, site, page):
    tab, _ = visit(site / "book" / f"{page}.html")
    tab.set_viewport_size({"width": 390, "height": 844})
    small = "[...document.querySelectorAll('.sc select, .sc .heads button, .sc .chips button')].map((b) => b.getBoundingClientRect())"
    assert tab.evaluate(small + ".filter((b) => b.height < 24 || b.width < 24).length") == 0
