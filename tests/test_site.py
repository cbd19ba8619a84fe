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
    assert tab.evaluate(SERIOUS, [[], {}]) == []
    tab.evaluate("document.querySelectorAll('.sc-claims details').forEach((d) => { d.open = true; })")
    assert tab.evaluate(SERIOUS, [[], {"runOnly": ["color-contrast"]}]) == []
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=3000)
    assert page.stat().st_size < 400_000


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


SERIOUS = """async ([spared, rules]) => (await axe.run({exclude: spared}, {resultTypes: ["violations"], preload: false, ...rules})).violations
  .filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => v.id + ": " + v.nodes.map((n) => n.html.slice(0, 120)).join(" | "))"""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_offline_legible_and_accessible(visit, site, name):
    tab, said = visit(site / "book" / f"{name}.html")
    spared = [] if name == "01_dataset" else [".highlight", "mjx-container"]  # alike on all pages, and slow: seen on one
    assert said == []
    assert tab.evaluate("[...document.images].filter((i) => !i.alt.trim() || !i.naturalWidth).map((i) => i.outerHTML.slice(0, 200))") == []
    assert tab.evaluate("document.querySelectorAll('mjx-merror, .MathJax_Error').length") == 0
    assert tab.evaluate(SERIOUS, [spared, {}]) == []
    for width in (390, 1280):
        tab.set_viewport_size({"width": width, "height": 844})
        tab.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width, timeout=3000)  # the side bars slide into place
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.wait_for_function("() => document.getAnimations().every((a) => a.playState !== 'running')")  # colours fade into the dark
    assert tab.evaluate(SERIOUS, [spared, {"runOnly": ["color-contrast"]}]) == []
    assert said == []


def test_the_explorer_in_the_page_holds_what_the_notebook_recorded(visit, site):
    import json
    import re

    from spatial_circuits.book import notebooks
    from spatial_circuits.book.explorer import unpacked
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
