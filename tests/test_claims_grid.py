"""The first page: the grid of claims and runs, its sentences' figures, and what they read."""
import json
import re
from html import unescape
from pathlib import Path

import pytest

from spatial_circuits.book import claims_grid, first_page
from spatial_circuits.book.claims_grid import ELSEWHERE, SIGNS, UNTESTED, ClaimsGrid, grid_rows
from spatial_circuits.book.verdict import claim_verdict
from spatial_circuits.claims import claims
from spatial_circuits.model.store import names

TOP = Path(__file__).resolve().parents[1]


def run(folder: Path, name: str, encoder: str = "rte", size: str = "tiny", **tables) -> Path:
    """A folder with what tells its kind, and tables."""
    path = folder / name
    path.mkdir()
    for file, record in {"text": {"name": encoder}, "recipe": {"size": size}, **tables}.items():
        (path / f"{file}.json").write_text(json.dumps(record))
    return path


def evaluation(loose: float) -> dict:
    row = {"mean": loose, "low": loose - 0.02, "high": loose + 0.02, "ceiling": 1.0, "of_ceiling": loose}
    return {"metrics": {"loose": row, "unique_binding": row}}


def written(obeyed: float, control: float) -> dict:
    rows = [{"condition": c, "metric": "loose", "mean": m, "low": m - 0.05, "high": m + 0.05, "n_prompts": 10}
            for c, m in (("relation 1", obeyed), ("random 1", control))]
    return {"injection": rows}


def test_each_cell_says_what_its_run_says(tmp_path):
    folders = [run(tmp_path, "m", "minilm", evaluation=evaluation(0.6)), run(tmp_path, "a", evaluation=evaluation(0.97)),
               run(tmp_path, "b"), run(tmp_path, "n", size="nano", evaluation=evaluation(0.3))]
    rows = {row.claim.id: row for row in grid_rows(folders)}
    names = [f"{tmp_path.name}/{n}" for n in "abnm"]                       # random, shallow, contextual
    assert [cell.run for cell in rows["C1"].cells] == names
    assert [cell.status for cell in rows["C1"].cells] == ["holds", UNTESTED, ELSEWHERE, "does not hold"]
    assert rows["C1"].status == "partly" and (rows["C1"].together.held, rows["C1"].together.runs) == (1, 2)
    assert rows["C4"].cells[2].status == "holds" and rows["C16"].status == UNTESTED
    assert "0.970 [0.950, 0.990]" in rows["C1"].cells[0].ours


def test_a_chapter_says_of_a_claim_what_the_grid_says(tmp_path):
    obeyed = run(tmp_path, "a", circuit=written(0.7, 0.1))
    said = claim_verdict(str(obeyed), "C8", "C9", "C10").data.split("\n>\n")
    row = next(row for row in grid_rows([obeyed]) if row.claim.id == "C8")
    assert said[0].startswith("> **Holds** by the ") and row.cells[0].status == "holds"
    assert row.cells[0].ours in said[0] and claims_grid.rule("C8") in said[0]
    assert said[1].startswith("> **Not yet tested**") and said[2].startswith("> **Not about this model**")
    assert claim_verdict(str(tmp_path), "C8").data == "> **Not measured**: C8."


def test_the_grid_of_what_ships_keeps_every_part_of_the_table():
    folders = [claims.folder_of(n) for n in names()]
    found, html = claims.survey(folders), ClaimsGrid(folders, "A <caption>")._repr_html_()
    text = unescape(re.sub(r"<[^>]+>", "", html))
    for claim in claims.CLAIMS:
        assert claim.text in text and claim.paper in text and f'id="claim-{claim.id}"' in html
        assert claims_grid.rule(claim.id).replace("`", "") in text
        for line in found[claim.id].ours.split("<br>") if claim.id in found else ():
            assert line.partition(": ")[2] in text, claim.id
    assert "13_which_token.html" in html and "ipynb" not in html and "A &lt;caption&gt;" in html
    assert html.count("<details") == len(claims.CLAIMS) == len(claims_grid.SHORT)


def test_a_biased_run_stands_beside_and_does_not_count(tmp_path):
    folders = [run(tmp_path, "a", evaluation=evaluation(0.97)), run(tmp_path, "b", evaluation=evaluation(0.99))]
    (folders[1] / "recipe.json").write_text('{"size": "tiny", "first_up": 0.95}')
    (first,) = [row for row in grid_rows(folders) if row.claim.id == "C1"]
    assert [cell.status for cell in first.cells] == ["holds", "not comparable"] and first.together.runs == 1
    assert first_page.numbers(folders)["ordered"] == "1"


def test_every_status_has_a_sign_and_a_word_of_its_own():
    assert set(claims.STATUS) | {ELSEWHERE} == set(SIGNS) and len(set(SIGNS.values())) == len(SIGNS)
    style = (Path(claims_grid.__file__).parent / "assets" / "claims_grid.css").read_text()
    assert all(f".sc-sign.{s.replace(' ', '-')} " in style for s in SIGNS if s != ELSEWHERE)
    with pytest.raises(ValueError, match="status 'perhaps' is unknown; choose from holds"):
        claims_grid.mark("perhaps")
    with pytest.raises(ValueError, match="claim 'C99' is unknown; choose from C1"):
        claims_grid.rule("C99")


def test_a_sentence_gives_the_weakest_run(tmp_path):
    folders = [run(tmp_path, "a", evaluation=evaluation(0.97), circuit=written(0.9, 0.1)),
               run(tmp_path, "b", evaluation=evaluation(0.91), circuit=written(0.7, 0.3)),
               run(tmp_path, "c", "rte-nopos", evaluation=evaluation(0.2))]
    n = first_page.numbers(folders)
    assert (n["relation"], n["bag"]) == ("0.91 [0.89, 0.93]", "0.20 [0.18, 0.22]")
    assert (n["obeyed"], n["control"]) == ("0.70 [0.65, 0.75]", "0.30 [0.25, 0.35]")
    assert (n["ordered"], n["random"], n["contextual"]) == ("2", "0", "0")  # no screen, no exchange
    assert {n[key] for key in ("alone", "ramps", "by_word", "the", "shallow")} == {first_page.MISSING}
    assert "not yet tested" in first_page.verdict_span(first_page.more_together(folders), "more")


def test_counts_are_of_the_runs_that_have_the_table(tmp_path):
    heads = [{"word": w, "cosine": c, "projection": p} for w, c, p in (("up", 0.95, 3), ("up", 0.1, 1), ("left", 0.5, 2))]
    graft = [{"token": t, "condition": "grafted", "metric": "loose", "mean": m, "low": m, "high": m, "n_prompts": 10}
             for t, m in (("shape2", 0.6), ("relation", 0.4))]
    folders = [run(tmp_path, "a", screen={"heads": heads}), run(tmp_path, "b"), run(tmp_path, "m", "minilm"),
               run(tmp_path, "n", "minilm", arithmetic={"graft": graft, "moved": []})]
    n = first_page.numbers(folders)
    assert [n[key] for key in ("random", "ramps", "contextual", "by_shape2", "by_word")] == ["1", "1 of 2", "1", "1", "0"]


def lost(alone: float, together: float) -> dict:
    """Tables of a run that loses so much without one head, and without all."""
    def row(condition: str, loss: float) -> dict:
        return {"condition": condition, "metric": "loose", "mean": 1 - loss, "low": 1 - loss, "high": 1 - loss,
                "change": -loss, "change_low": -loss - 0.1, "change_high": -loss + 0.1, "n_prompts": 10}
    heads = [{"name": f"L0H{i}", "score": "relation", "mean": m} for i, m in enumerate((0.2, 0.5))]
    return {"synopsis": {"heads": heads}, "ablation": {"effects": [row("L0H0", 0.9), row("L0H1", alone)]},
            "circuit": {"without": [row("relation", together)], **written(0.9, 0.1)}}


@pytest.mark.parametrize("together, held", [(0.6, 1), (0.3, 0)])
def test_what_is_lost_together_must_lie_apart_from_what_is_lost_alone(tmp_path, together, held):
    folder = run(tmp_path, "a", **lost(0.2, together))
    assert first_page.more_together([folder]).held == held
    n = first_page.numbers([folder])
    assert n["alone"] == "0.20 [0.10, 0.30]" and n["together"].startswith(f"{together:.2f} [")


def test_the_first_page_of_another_run_is_written_without_its_tables(tmp_path):
    folder = run(tmp_path, "a")
    assert first_page.numbers([folder])["relation"] == first_page.MISSING
    verdicts = {row.claim.id: first_page.verdict_line(row) for row in grid_rows([folder])}
    assert f"<b>{UNTESTED}</b>" in verdicts["C1"] and f"<b>{ELSEWHERE}</b>" in verdicts["C10"]
    standing = claims_grid.standing(grid_rows([folder])).splitlines()
    assert [line.partition("**:")[0] for line in standing] == ["- **Not yet tested", "- **Not about this model"]


def test_a_sentence_without_its_figures_is_left_out():
    told = "Above is {a} of\nthem.\n\nBelow is {b}.\n\nBoth are {a} and {b}."
    assert first_page.finding(told, {"a": "1", "b": "2"}) == "Above is 1 of them. Below is 2. Both are 1 and 2."
    assert first_page.finding(told, {"a": "1", "b": first_page.MISSING}) == "Above is 1 of them."
    assert first_page.finding(told, dict.fromkeys("ab", first_page.MISSING)) == first_page.NOTHING


@pytest.mark.parametrize("name", names())
def test_the_first_page_of_every_model_reads_well(name):
    """The cell of the list, run for each model: no gaps, and five findings with a verdict each."""
    from spatial_circuits.book import notebooks
    cell, = (c.source for c in notebooks.load_notebook(TOP / "book" / "index.ipynb").cells if "def said" in c.source)
    told = {}
    scope = {"model": name, "names": names, "folder_of": claims.folder_of, "grid_rows": grid_rows, "Markdown": lambda text: told.setdefault("list", text),
             **{key: getattr(first_page, key) for key in ("finding", "more_together", "numbers", "verdict_line", "verdict_span")}}
    exec(cell, scope)
    items = told["list"].splitlines()
    assert len(items) == 5 and all(item.startswith("1. ") and "</b></span>" in item for item in items)
    assert first_page.MISSING not in told["list"] and "runs: 0" not in told["list"] and "of 0" not in told["list"]


def test_rows_are_opened_by_keys_and_a_phone_scrolls_them_in_their_box(chromium, tmp_path):
    runs = [run(tmp_path, f"a-run-with-a-name-{i}") for i in range(12)]
    html = ClaimsGrid(runs, "Claims.")._repr_html_()
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>Claims</title><main>{html}</main></html>")
    context = chromium.new_context(offline=True, viewport={"width": 390, "height": 844})
    tab = context.new_page()
    tab.goto(file.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("(() => { const b = document.querySelector('.scroll'); return b.scrollWidth > b.clientWidth; })()")
    tab.locator("details:has(#claim-C6) summary").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#claim-C6").is_visible() and not tab.locator("#claim-C5").is_visible()
    assert tab.locator("#claim-C6").bounding_box()["width"] <= 390
    tab.goto(f"{file.as_uri()}#claim-C9")                                   # a link opens what it points to
    tab.locator("#claim-C9").wait_for(state="visible", timeout=3000)
    assert tab.locator("details[open]").count() == 2
    context.close()


def test_a_phone_shows_ten_runs_at_once_and_of_more_that_they_go_on(chromium, tmp_path):
    """In the 312 px that a page 360 px wide leaves; where runs go under the last column they fade, until all are out."""
    context = chromium.new_context(offline=True, viewport={"width": 390, "height": 844})
    tab, runs, file = context.new_page(), [run(tmp_path, f"run-{i:02}") for i in range(12)], tmp_path / "page.html"
    box = "document.querySelector('.scroll')"
    faded = "Number(getComputedStyle(document.querySelector('details .sc-cell:last-child'), '::before').opacity)"
    for count, beyond in ((10, False), (12, True)):
        html = ClaimsGrid(runs[:count], "Claims.")._repr_html_()
        file.write_text(f"<!doctype html><html lang=en><meta charset=utf-8><style>figure {{ margin: 0; width: 312px }}</style><main>{html}</main></html>")
        tab.goto(file.as_uri())
        assert tab.evaluate(f"{box}.scrollWidth > {box}.clientWidth") == beyond and (tab.evaluate(faded) == 1) == beyond
    tab.locator("details:has(#claim-C6) summary").click()
    tab.evaluate(f"{box}.scrollLeft = 1000")
    tab.wait_for_function(f"{faded} === 0", timeout=3000)
    assert tab.locator("#claim-C6").bounding_box()["x"] >= 0                # what is unfolded stays in sight
    context.close()


def test_the_first_figure_of_the_readme_is_drawn_in_a_fresh_folder(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (TOP / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "first.png").stat().st_size > 10_000
