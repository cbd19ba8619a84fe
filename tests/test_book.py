"""run_book on toy books of one or two cells: order, parameters, failure, normalisation, staleness."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree

import nbformat
import psutil
import pytest
import yaml

from spatial_circuits import cli
from spatial_circuits.book import execute, notebooks, progress, runner
from spatial_circuits.book.execute import environment
from spatial_circuits.book.progress import Progress, read_durations
from spatial_circuits.book.runner import (
    NotebookError,
    build_pages,
    check_parameters,
    pages,
    pair,
    run_book,
    toc,
)

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
    outputs = [o for c in notebooks.load_notebook(path).cells for o in c.get("outputs", [])]
    return "".join(o.text for o in outputs if o.output_type == "stream")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A toy book of two pages after one run, the second page needing the first."""
    book = make(tmp_path_factory.mktemp("toy"), second=SECOND, first=FIRST)
    (book / "data.csv").write_text("a,b\n")
    made = run_book(book, in_place=True)
    assert [path.name for path in made] == ["second.ipynb", "first.ipynb"]
    return book


def test_a_page_waits_for_those_it_needs(toy):
    assert printed(toy / "second.ipynb") == "True\n"
    assert not list(toy.glob("*.partial.ipynb")) + list(toy.glob(".*.tmp"))


def test_the_kernel_is_this_interpreter_with_its_share_of_the_cores(toy):
    threads = environment(2)["OMP_NUM_THREADS"]
    assert printed(toy / "first.ipynb").split("\n")[0] == f"{sys.executable} {threads}"


def test_two_runs_give_equal_files_with_outputs(toy):
    first = (toy / "first.ipynb").read_bytes()
    run_book(toy, names=["first"], jobs=2, in_place=True)
    assert (toy / "first.ipynb").read_bytes() == first
    nb = notebooks.load_notebook(toy / "first.ipynb")
    nbformat.validate(nb)
    kinds = [[o.output_type for o in c.outputs] for c in nb.cells if c.cell_type == "code"]
    assert kinds == [[], ["stream"], ["execute_result"], ["stream", "execute_result", "display_data"]]
    assert len(nb.metadata.widgets[notebooks.WIDGETS].state) == 3  # the slider, its layout and style


def test_a_run_leaves_nothing_of_the_machine_or_the_clock_in_the_metadata(toy):
    nb = notebooks.load_notebook(toy / "first.ipynb")
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
    assert notebooks.difference(book / "second.py", book / "second.ipynb")
    with pytest.raises(NotebookError, match="second: .*does not hold the cells"):
        run_book(book, check=True)
    assert pair(book) == [book / "second.ipynb"]
    assert notebooks.difference(book / "second.py", book / "second.ipynb") is None
    with pytest.raises(NotebookError, match="second: .*missing or stale"):
        run_book(book, check=True)


def test_an_edited_cell_makes_its_output_stale(toy):
    nb = notebooks.load_notebook(toy / "second.ipynb")
    assert not notebooks.stale(nb)
    nb.cells[0].source += "\nprint(2)"
    assert notebooks.stale(nb)


def test_a_failure_names_the_notebook_and_cell_and_keeps_the_partial_output(tmp_path):
    book = make(tmp_path, good="# %%\nprint(1)\n", bad=FAILING, late="# %%\nprint(3)\n")
    with pytest.raises(NotebookError) as error:
        run_book(book, jobs=1, in_place=True)
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
        run_book(book, jobs=2, in_place=True)
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
    assert notebooks.load_notebook(first).metadata.spatial_circuits_run.parameters == {"seed": 7, "scale": "smoke"}
    assert not notebooks.stale(notebooks.load_notebook(first)) and notebooks.difference(toy / "first.py", first) is None
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
    files = {name: notebooks.save_notebook(notebooks.twin(book / f"{name}.py"), tmp_path / f"{name}.ipynb")
             for name in pages(book)}
    assert check_parameters(files, {"rate": 1}) == {"first": {"rate": 1}, "second": {}}


def test_the_command(tmp_path, capsys):
    book = make(tmp_path, good="# %%\nprint(1)\n", bad=FAILING)
    line = ["run-book", "--book", str(book)]
    assert cli.main([*line, "bad", "good"]) == 1
    assert "notebook bad failed in this cell" in capsys.readouterr().err
    assert sorted(path.name for path in book.iterdir()) == ["bad.py", "good.py"]  # as it was
    assert cli.main([*line, "--in-place", "good"]) == 0
    assert str(book / "good.ipynb") in capsys.readouterr().out
    assert cli.main([*line, "--check", "good"]) == 0
    assert cli.main([*line, "--check"]) == 1
    assert "bad: bad.ipynb does not exist; `spatial-circuits run-book --in-place bad` makes it" in capsys.readouterr().err
    assert cli.main([*line, "-p", "seed=1"]) == 2
    assert "unknown parameter seed=1; allowed: none" in capsys.readouterr().err
    assert cli.main([*line, "--in-place", "--scale", "smoke"]) == 2
    assert "needs a folder of its own" in capsys.readouterr().err


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
    def html(text):
        figure = f"<figure><img><figcaption>{text}</figcaption></figure>"
        return nbformat.v4.new_output("display_data", {"text/html": figure})
    cells = [nbformat.v4.new_code_cell("x", outputs=[html("one"), html("two")]),
             nbformat.v4.new_code_cell("y", outputs=[html("three")])]
    for name, label in (("07_heads", "Figure 7."), ("index", "Figure ")):
        nb = notebooks.number_figures(notebooks.number_figures(nbformat.v4.new_notebook(cells=cells), name), name)
        shown = [o.data["text/html"] for c in nb.cells for o in c.outputs]
        assert shown == [f'<figure id="figure-{i}"><img><figcaption><span class="number">{label}{i}.'
                         f'</span> {text}</figcaption></figure>'
                         for i, text in enumerate(("one", "two", "three"), 1)]


def test_a_whole_book_about_a_model(tmp_path, saved, capsys, monkeypatch):
    """The model's folder has any name, a small number stays a number, and the page shows neither the
    reader's settings nor what matplotlib says when it cannot read them."""
    text = ("# %% tags=[\"parameters\"]\nmodel: str = \"rte\"\nrate: float = 0.5\n\n"
            "# %%\nprint(model, rate, type(rate))\nimport matplotlib.pyplot as plt\n"
            "plt.plot([1, 2]);\n")
    book = make(tmp_path, page=text)
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "book.css").write_text("")
    model = copytree(saved, tmp_path / "\N{GRINNING FACE} modèle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "_config.yml" / "nowhere"))
    line = ["run-book", "--book", str(book), "--model"]
    assert cli.main([*line, model.name, "-p", "rate=1e-5", "--out", str(tmp_path / "out")]) == 0
    page = tmp_path / "out" / "book" / "page.ipynb"
    assert printed(page) == f"{model} 1e-05 <class 'float'>\n"  # found from wherever it runs
    assert (tmp_path / "out" / "_static" / "book.css").exists()
    assert cli.main([*line, "minilmm"]) == 2
    assert "no model 'minilmm'; choose from micro, minilm" in capsys.readouterr().err


def test_a_variant_is_named_by_its_parameters(tmp_path):
    out = runner._out(tmp_path, None, {"model": "minilm", "rate": 1e-5}, False)
    assert out == tmp_path / "_build" / "variants" / "model=minilm,rate=1e-05"
    assert runner._out(tmp_path, None, {}, False) == tmp_path / "_build" / "book"


def add_cell(path: Path, source: str) -> bytes:
    nb = notebooks.load_notebook(path)
    nb.cells.append(nbformat.v4.new_code_cell(source))
    nbformat.write(nb, path)
    return path.read_bytes()


def test_a_cell_added_to_a_notebook_alone_is_never_lost(tmp_path):
    from jupytext.cli import jupytext
    book = make(tmp_path, page="# %%\nprint(1)\n")
    copytree(Path(runner.__file__).parents[3] / "book", book, dirs_exist_ok=True,
             ignore=lambda _, names: {n for n in names if n != "jupytext.toml"})
    py, ipynb = book / "page.py", book / "page.ipynb"
    pair(book)
    before = add_cell(ipynb, "precious = 2")
    for run in (lambda: run_book(book), lambda: run_book(book, in_place=True), lambda: pair(book)):
        with pytest.raises(ValueError, match="page: page.ipynb .* page.ipynb is newer; .jupytext --to"):
            run()
        assert ipynb.read_bytes() == before
    with pytest.raises(NotebookError, match="page.ipynb is newer"):
        run_book(book, check=True)
    advised = notebooks.difference(py, ipynb).split("`")[1].split()
    jupytext(advised[1:])
    assert "precious = 2" in py.read_text() and notebooks.difference(py, ipynb) is None

    py.write_text(py.read_text() + "\n# %%\nprint(3)\n")
    before = add_cell(ipynb, "also = 4")
    with pytest.raises(ValueError, match="both were changed, as .jupytext .* diff"):
        run_book(book, in_place=True)
    assert ipynb.read_bytes() == before


def as_run(book: Path, name: str, parameters: dict) -> None:
    """A notebook as a run with these parameters leaves it, but for its outputs."""
    nb = notebooks.twin(book / f"{name}.py")
    for count, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), 1):
        cell.execution_count = count
    nb.metadata["spatial_circuits_run"] = {"source_sha256": notebooks.source_hash(nb),
                                           "parameters": parameters}
    notebooks.save_notebook(nb, book / f"{name}.ipynb")


def test_a_page_that_was_not_run_says_so(tmp_path):
    seeded = f"# %% [markdown]\n# # A page\n\n{PARAMETERS}"
    book = make(tmp_path, a=seeded, b=seeded, c="# %%\nprint(1)\n")
    for name in "abc":
        as_run(book, name, {})
    out = tmp_path / "o"

    def notes() -> list[str]:
        """What the pages say below their titles."""
        cells = [notebooks.load_notebook(out / "book" / f"{n}.ipynb").cells for n in "abc"]
        found = [[c.source for c in page if "not-run" in c.metadata.get("tags", [])] for page in cells]
        return ["".join(said) for said in found]
    [written] = run_book(book, out, names=["a"], parameters={"seed": -5})
    said = "> **Not run with seed=-5.** What this page shows is of another run."
    assert notes() == ["", said, ""]  # c takes no seed: it is as it would be
    assert notebooks.load_notebook(written).cells[0].source == "# A page"
    runner._prepare(book, out / "book", out, {"seed": -5}, ["b"])
    assert notes() == ["", said, ""]  # a keeps what it has
    runner._prepare(book, out / "book", out, {"seed": 7}, ["b"])
    assert notes() == [said.replace("-5", "7"), said.replace("-5", "7"), ""]


def test_a_folder_of_something_else_is_refused(tmp_path):
    book = make(tmp_path, first=PARAMETERS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for out, message in (("mine", "holds files of something else"), ("_toc.yml", "is a file"),
                         ("book", "holds files of something else")):
        with pytest.raises(ValueError, match=message):
            run_book(book, tmp_path / out, scale="smoke")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


SLEEPING = """# %%
import os, pathlib, time
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(120)
"""


@pytest.mark.parametrize("sent, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130),
                                          (signal.SIGKILL, -9)])
def test_however_a_run_ends_it_leaves_no_kernel(tmp_path, sent, status):
    book = make(tmp_path, page=SLEEPING)
    path = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    line = [sys.executable, "-m", "spatial_circuits.cli", "run-book", "--book", str(book)]
    child = subprocess.Popen(line, env=path, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (book / "pid").exists() and (book / "pid").read_text())
    kernel = psutil.Process(int((book / "pid").read_text()))
    above = [process.pid for process in kernel.parents()]
    child.send_signal(sent)
    assert child.wait(30) == status
    wait_until(lambda: not kernel.is_running())
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in above[:above.index(child.pid)]))
    if sent != signal.SIGKILL:
        assert child.stderr.read().count("spatial-circuits: ") == 1
        assert not list(tmp_path.rglob("*.partial*"))


def wait_until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Clock:
    """In place of the time: it goes on when it is told to."""
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("slower", [0.5, 1, 2])
def test_the_time_left_is_right_within_a_factor_of_two(monkeypatch, slower):
    """Ten notebooks of 5 to 600 s, two at a time, on a machine at half or twice the recorded pace:
    while more than a minute is left and, at another pace, once a notebook has shown it."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    seconds = (600, 300, 120, 60, 60, 30, 20, 10, 10, 5)
    known = {str(i): s for i, s in enumerate(seconds)}
    waiting, ends, estimates = list(known), {}, []
    bar = Progress(waiting, known, 2)
    while waiting or ends:
        for name in [n for n, end in ends.items() if end <= clock.now]:
            bar.finish(name)
            del ends[name]
        while waiting and len(ends) < 2:
            name = waiting.pop(0)
            bar.start(name)
            ends[name] = clock.now + slower * known[name]
        if slower == 1 or bar.taken:
            estimates.append((clock.now, bar.left()))
        bar.show()
        clock.now += 5
    bar.bar.close()
    end = estimates[-1][0]
    wrong = [(now, left, end - now) for now, left in estimates
             if end - now > 60 and not 0.5 <= left / (end - now) <= 2]
    assert len(estimates) > 20 and wrong == []


def test_the_longest_notebook_starts_first_and_times_are_kept(tmp_path, monkeypatch):
    book = make(tmp_path, short="# %%\n1\n", long="# %%\n2\n", new="# %%\n3\n")
    started = []

    def start(notebook, *_):
        started.append(notebook.stem)
        return subprocess.Popen(["true"])
    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "_finish", lambda *_: None)
    (book / "durations.json").write_text('{"full": {"short": 1, "long": 9}}')
    run_book(book, jobs=1)
    assert started == ["long", "new", "short"]  # an unknown one is taken to be in between
    kept = tmp_path / "_build" / "durations.json"
    assert set(read_durations(kept)["full"]) == {"short", "long", "new"}
    kept.write_text("{")  # a broken record costs the estimate, not the run
    assert read_durations(book / "durations.json", kept)["full"] == {"short": 1, "long": 9}
    run_book(book, jobs=1, in_place=True)
    assert read_durations(book / "durations.json")["full"]["long"] < 9


def test_the_pages_of_the_book_are_built_beside_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runner.subprocess, "run", lambda command, check: asked.append(command))
    for folder, top in (("_build/book", "."), ("_build/smoke", "_build/smoke")):
        (tmp_path / folder / "book").mkdir(parents=True)
        (tmp_path / folder / "_toc.yml").touch()
        first = build_pages(tmp_path / folder / "book")
        assert first == (tmp_path / top / "_build" / "html" / "index.html")
        assert asked.pop()[2:5] == [str(tmp_path / folder), "--path-output", str(tmp_path / top)]


def test_kernels_have_settings_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MATPLOTLIBRC", "mine")
    (tmp_path / "file").touch()
    for cache in (tmp_path, tmp_path / "file"):  # the latter cannot hold a folder
        monkeypatch.setattr("platformdirs.user_cache_path", lambda name, cache=cache: cache / name)
        monkeypatch.setattr(execute, "settings_folder", execute.settings_folder.__wrapped__)
        env = environment()
        assert list(Path(env["MPLCONFIGDIR"]).glob("fontlist-*.json")) and "MATPLOTLIBRC" not in env
        assert (cache in Path(env["MPLCONFIGDIR"]).parents) == cache.is_dir()
        monkeypatch.undo()


def test_records_no_cell_uses_are_dropped_and_only_a_refresh_may_write_them(tmp_path, monkeypatch):
    book = make(tmp_path, first="""# %%
import os
from pathlib import Path
from spatial_circuits.book.execute import WRITE
print(os.environ.get(WRITE))
Path("records/first").mkdir(parents=True, exist_ok=True)
Path("records/first/used.json").touch()
""")
    monkeypatch.setenv(execute.WRITE, "1")
    old = book / "records" / "first" / "old.json"
    old.parent.mkdir(parents=True)
    old.touch()
    os.utime(old, (1, 1))
    said = [printed(run_book(book, **how)[0]) for how in ({}, {"in_place": True})]
    assert said == ["None\n", "1\n"]
    assert [p.name for p in old.parent.iterdir()] == ["used.json"]
    assert not list((book.parent / "_build").rglob("records"))
