"""run_book on toy books of one or two cells: order, parameters, failure, normalisation, staleness."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from spatial_circuits import cli, notebooks
from spatial_circuits.book import (NotebookError, check_parameters, environment, pages, pair,
                                   parse_parameters, run_book, toc)

PARAMETERS = """# %% tags=["parameters"]
seed: int = 0
rate: float = 0.5
scale: str = "full"  # smoke | full
"""
FIRST = f"""# %% [markdown]
# # A page

{PARAMETERS}
# %%
import os, sys
print(sys.executable, os.environ["OMP_NUM_THREADS"])
print(seed, scale)

# %%
import time
from tqdm import tqdm
import ipywidgets
for step in tqdm(range(30)):
    time.sleep(0.01)
slider = ipywidgets.IntSlider(3)
unseen = ipywidgets.IntSlider(4)
slider

# %%
print("one", flush=True); time.sleep(0.3); print("two")
import matplotlib.pyplot as plt
plt.plot([1, 2])
object()
"""
SECOND = """# ---
# jupyter:
#   spatial_circuits:
#     needs: [first]
# ---

# %%
from pathlib import Path
print(Path("first.ipynb").exists())
"""
FAILING = """# %%
print("before")

# %%
def halve(text):
    return text / 2
halve("a")

# %%
print("after")
"""


def make(folder: Path, **texts: str) -> Path:
    """A book: _toc.yml and book/NAME.py for each text."""
    book = folder / "book"
    book.mkdir(parents=True)
    for name, text in texts.items():
        (book / f"{name}.py").write_text(text)
    root, *rest = (f"book/{name}" for name in texts)
    toc = {"format": "jb-book", "root": root, "chapters": [{"file": file} for file in rest]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    (folder / "_config.yml").write_text("title: Toy\n")
    return book


def printed(path: Path) -> str:
    outputs = [o for c in notebooks.load(path).cells for o in c.get("outputs", [])]
    return "".join(o.text for o in outputs if o.output_type == "stream")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A toy book of two pages after one run, the second page needing the first."""
    book = make(tmp_path_factory.mktemp("toy"), second=SECOND, first=FIRST)
    (book / "data.csv").write_text("a,b\n")
    assert [path.name for path in run_book(book)] == ["second.ipynb", "first.ipynb"]
    return book


def test_a_page_waits_for_those_it_needs(toy):
    assert printed(toy / "second.ipynb") == "True\n"
    assert not list(toy.glob("*.partial.ipynb")) + list(toy.glob(".*.tmp"))


def test_the_kernel_is_this_interpreter_with_its_share_of_the_cores(toy):
    threads = environment(2)["OMP_NUM_THREADS"]
    assert printed(toy / "first.ipynb").split("\n")[0] == f"{sys.executable} {threads}"


def test_two_runs_give_equal_files_with_outputs(toy):
    first = (toy / "first.ipynb").read_bytes()
    run_book(toy, names=["first"], jobs=2)
    assert (toy / "first.ipynb").read_bytes() == first
    nb = notebooks.load(toy / "first.ipynb")
    nbformat.validate(nb)
    kinds = [[o.output_type for o in c.outputs] for c in nb.cells if c.cell_type == "code"]
    assert kinds == [[], ["stream"], ["execute_result"], ["stream", "execute_result", "display_data"]]
    assert len(nb.metadata.widgets[notebooks.WIDGETS].state) == 3  # the slider, its layout and style


def test_a_run_leaves_nothing_of_the_machine_or_the_clock_in_the_metadata(toy):
    nb = notebooks.load(toy / "first.ipynb")
    assert set(nb.metadata) == {"jupytext", "kernelspec", "language_info", "spatial_circuits_run", "widgets"}
    assert [c.metadata for c in nb.cells] == [{}, {"tags": ["parameters"]}, {}, {}, {}]


def test_sync_and_staleness_compare_sources_not_times(toy, tmp_path):
    text = (toy / "second.py").read_text()
    book = make(tmp_path, second=text)
    (book / "second.ipynb").write_bytes((toy / "second.ipynb").read_bytes())
    (book / "second.py").touch()
    assert run_book(book, check=True) == [book / "second.ipynb"]
    assert pair(book) == []  # nothing to do, so the outputs stay
    (book / "second.py").write_text(text + "\n# %%\nprint(1)\n")
    assert not notebooks.in_sync(book / "second.py", book / "second.ipynb")
    with pytest.raises(NotebookError, match="second: .*does not hold the cells"):
        run_book(book, check=True)
    assert pair(book) == [book / "second.ipynb"]
    assert notebooks.in_sync(book / "second.py", book / "second.ipynb")
    with pytest.raises(NotebookError, match="second: .*missing or stale"):
        run_book(book, check=True)


def test_an_edited_cell_makes_its_output_stale(toy):
    nb = notebooks.load(toy / "second.ipynb")
    assert not notebooks.stale(nb)
    nb.cells[0].source += "\nprint(2)"
    assert notebooks.stale(nb)


def test_a_failure_names_the_notebook_and_cell_and_keeps_the_partial_output(tmp_path):
    book = make(tmp_path, good="# %%\nprint(1)\n", bad=FAILING, late="# %%\nprint(3)\n")
    with pytest.raises(NotebookError) as error:
        run_book(book, jobs=1)
    for part in ("notebook bad failed", 'halve("a")', "return text / 2", "TypeError:", "bad.partial"):
        assert part in str(error.value)
    assert "\x1b" not in str(error.value)
    assert printed(book / "bad.partial.ipynb").startswith("before")
    assert (book / "good.ipynb").exists() and not (book / "bad.ipynb").exists()
    assert not (book / "late.ipynb").exists()


def test_a_failure_stops_the_notebooks_still_running(tmp_path):
    slow = "# %%\nimport time, pathlib\ntime.sleep(60)\npathlib.Path('late').touch()\n"
    book = make(tmp_path, bad=FAILING, slow=slow)
    with pytest.raises(NotebookError, match="notebook bad failed"):
        run_book(book, jobs=2)
    assert not (book / "late").exists() and not (book / "slow.ipynb").exists()


def test_a_dead_kernel_is_reported(tmp_path):
    book = make(tmp_path, dead="# %%\nimport os\nos._exit(3)\n")
    with pytest.raises(NotebookError, match="(?s)notebook dead stopped.*[Kk]ernel"):
        run_book(book)


def test_parameters_make_a_variant_in_its_own_folder(toy):
    before = (toy / "first.ipynb").read_bytes()
    second, first = run_book(toy, parameters={"seed": 7}, scale="smoke")
    assert first == toy.parent / "_build" / "variants" / "scale=smoke,seed=7" / "book" / "first.ipynb"
    assert printed(first).split("\n")[1] == "7 smoke"
    assert notebooks.load(first).metadata.spatial_circuits_run.parameters == {"seed": 7, "scale": "smoke"}
    assert not notebooks.stale(notebooks.load(first)) and notebooks.in_sync(toy / "first.py", first)
    assert second.exists() and (first.parent / "data.csv").exists()
    assert (first.parents[1] / "_toc.yml").exists()
    assert (toy / "first.ipynb").read_bytes() == before


@pytest.mark.parametrize("parameters, message", [
    ({"sed": 3}, "unknown parameter sed=3; allowed: rate, scale, seed"),
    ({"seed": "x"}, "parameter seed='x' in notebook first: expected int"),
    ({"seed": 1.5}, "parameter seed=1.5 in notebook first: expected int"),
    ({"seed": True}, "parameter seed=True in notebook first: expected int"),
    ({"rate": "fast"}, "parameter rate='fast' in notebook first: expected float"),
    ({"scale": "huge"}, "parameter scale='huge' in notebook first: expected one of smoke, full"),
])
def test_a_wrong_parameter_is_refused_before_anything_runs(tmp_path, parameters, message):
    book = make(tmp_path, first=PARAMETERS)
    with pytest.raises(ValueError, match=f"^{message}$"):
        run_book(book, parameters=parameters)
    assert not list(book.glob("*.ipynb")) and not (tmp_path / "_build").exists()


def test_a_parameter_goes_to_the_notebooks_that_declare_it(tmp_path):
    book = make(tmp_path, first=PARAMETERS, second="# %%\nprint(1)\n")
    files = {name: notebooks.save(notebooks.twin(book / f"{name}.py"), tmp_path / f"{name}.ipynb")
             for name in pages(book)}
    assert check_parameters(files, {"rate": 1}) == {"first": {"rate": 1}, "second": {}}


def test_parameters_from_the_command_line():
    assert parse_parameters(["noise.high=0.3"]) == {"noise.high": 0.3}
    assert parse_parameters(["seed=3", "rate=1e-3", "model=rte", "flag=true", "path=a=b"]) == {
        "seed": 3, "rate": 1e-3, "model": "rte", "flag": True, "path": "a=b"}
    with pytest.raises(ValueError, match="'seed' is not of the form NAME=VALUE"):
        parse_parameters(["seed"])


def test_the_command(tmp_path, capsys):
    book = make(tmp_path, good="# %%\nprint(1)\n", bad=FAILING)
    assert cli.main(["run-book", "--book", str(book), "good"]) == 0
    assert str(book / "good.ipynb") in capsys.readouterr().out
    assert cli.main(["run-book", "--book", str(book), "--check", "good"]) == 0
    assert cli.main(["run-book", "--book", str(book), "--check"]) == 1
    assert "bad: bad.ipynb does not hold the cells of bad.py" in capsys.readouterr().err
    assert cli.main(["run-book", "--book", str(book), "bad"]) == 1
    assert "notebook bad failed in this cell" in capsys.readouterr().err
    assert cli.main(["run-book", "--book", str(book), "-p", "seed=1"]) == 2
    assert "unknown parameter seed=1; allowed: none" in capsys.readouterr().err


def test_the_command_starts_without_the_packages_of_the_book():
    hidden = "import sys; sys.modules.update(dict.fromkeys(['jupytext', 'nbformat', 'papermill', 'yaml']));"
    start = "import argparse, spatial_circuits.book as b; b.add_arguments(argparse.ArgumentParser())"
    path = {**os.environ, "PYTHONPATH": str(Path(notebooks.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", hidden + start], check=True, env=path)


def test_wrong_arguments_are_named(tmp_path):
    book = make(tmp_path, first=PARAMETERS)
    with pytest.raises(ValueError, match="no notebook 'frist' .*allowed: first"):
        run_book(book, names=["frist"])
    with pytest.raises(ValueError, match="jobs=0: expected 1 or more"):
        run_book(book, jobs=0)
    with pytest.raises(ValueError, match="needs a folder of its own"):
        run_book(book, out_dir=tmp_path, scale="smoke")
    (tmp_path / "_toc.yml").unlink()
    with pytest.raises(ValueError, match="no _toc.yml"):
        run_book(book)


def test_notebooks_that_need_one_another_are_refused(tmp_path):
    needs = "# ---\n# jupyter:\n#   spatial_circuits:\n#     needs: [{}]\n# ---\n\n# %%\nprint(1)\n"
    book = make(tmp_path, a=needs.format("b"), b=needs.format("a"))
    with pytest.raises(ValueError, match="need one another: a, b"):
        run_book(book)


def test_the_order_is_that_of_the_table_of_contents(tmp_path):
    book = make(tmp_path, z="", a="", m="")
    (book / "stray.py").write_text("")
    (tmp_path / "_toc.yml").write_text("root: book/z\nparts:\n- chapters:\n  - file: book/m\n    sections:\n"
                                       "    - file: book/missing\n- chapters:\n  - file: book/a\n")
    assert toc(book) == ["z", "m", "missing", "a"] and pages(book) == ["z", "m", "a"]
    assert pages(book, ["a", "z"]) == ["z", "a"]


def test_a_progress_bar_or_an_address_split_over_chunks_leaves_no_trace():
    out = nbformat.v4.new_output
    texts = "\r 10%|#", "    | 1/10 [00:00<00:01, 9it/s]", "\r100%|##|\n"
    chunks = [out("stream", name="stderr", text=text) for text in texts]
    chunks.insert(1, out("stream", name="stdout", text="loss 1\n"))
    chunks.append(out("stream", name="stdout", text="<A at 0x7f12ab>\n"))
    cell = nbformat.v4.new_code_cell("x", outputs=chunks)
    nb = notebooks.normalise(nbformat.v4.new_notebook(cells=[cell]))
    assert [(o.name, o.text) for o in nb.cells[0].outputs] == [("stdout", "loss 1\n<A at 0x...>\n")]


def test_figures_are_numbered_by_page_and_only_once():
    html = lambda text: nbformat.v4.new_output("display_data", {"text/html": f"<figure><img><figcaption>{text}</figcaption></figure>"})
    cells = [nbformat.v4.new_code_cell("x", outputs=[html("one"), html("two")]), nbformat.v4.new_code_cell("y", outputs=[html("three")])]
    for name, label in (("07_heads", "Figure 7."), ("index", "Figure ")):
        nb = notebooks.number_figures(notebooks.number_figures(nbformat.v4.new_notebook(cells=cells), name), name)
        shown = [o.data["text/html"] for c in nb.cells for o in c.outputs]
        assert shown == [f'<figure id="figure-{i}"><img><figcaption><span class="number">{label}{i}.</span> {text}</figcaption></figure>'
                         for i, text in enumerate(("one", "two", "three"), 1)]


def test_a_whole_book_about_a_model(tmp_path, saved, capsys, monkeypatch):
    book = make(tmp_path, page="# %% tags=[\"parameters\"]\nmodel: str = \"rte\"\n\n# %%\nprint(model)\n")
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "book.css").write_text("")
    monkeypatch.chdir(saved.parent)
    assert cli.main(["run-book", "--book", str(book), "--model", saved.name, "--out", str(tmp_path / "out")]) == 0
    assert printed(tmp_path / "out" / "book" / "page.ipynb") == f"{saved}\n"  # found from wherever the notebook runs
    assert (tmp_path / "out" / "_static" / "book.css").exists()
    assert cli.main(["run-book", "--book", str(book), "--model", "minilm"]) == 0
    assert "_build/variants/model=minilm" in capsys.readouterr().out
    assert cli.main(["run-book", "--book", str(book), "--model", "minilmm"]) == 2
    assert "no model 'minilmm'; choose from minilm" in capsys.readouterr().err
