"""Elsewhere: launch buttons, Binder, a development container, and the package without this repository."""
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from spatial_circuits.book.runner import build_pages
from spatial_circuits.model.store import names

TOP = Path(__file__).resolve().parents[1]
LOCKED = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (TOP / "constraints.txt").read_text(), re.M))
MAKEFILE = (TOP / "Makefile").read_text()
PYTHON = re.search(r"CPython ([\d.]+)", (TOP / "constraints.txt").read_text())[1]


def small_book(folder: Path, url: str) -> Path:
    """A book of two pages with this one's configuration, built: its notebook as HTML."""
    config = (TOP / "_config.yml").read_text()
    assert config.count("url: https://github.com/") == 1  # the one line that a fork changes
    (folder / "_config.yml").write_text(re.sub(r"url: https://github.com/\S+", f"url: {url}", config))
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/first\nchapters:\n- file: book/tour\n")
    for path in ("book/tour.ipynb", "book/references.bib", "_static/book.css"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes((TOP / path).read_bytes())
    text = (folder / "book" / "tour.ipynb").read_text()
    (folder / "book" / "tour.ipynb").write_text(re.sub(r"\]\(\w+\.(md|ipynb)\)", "](first.md)", text))
    (folder / "book" / "first.md").write_text("# First\n")
    return build_pages(folder).parent / "book" / "tour.html"


@pytest.mark.parametrize("owner, opens", [("OWNER", False), ("mine", True)])
def test_pages_open_elsewhere_once_the_repository_has_an_address(tmp_path, users_cache, monkeypatch, owner, opens):
    users_cache(monkeypatch)  # the exported models of the live page
    html = small_book(tmp_path, f"https://github.com/{owner}/spatial-circuits").read_text()
    branch = yaml.safe_load((TOP / "_config.yml").read_text())["repository"]["branch"]
    links = (f"https://colab.research.google.com/github/{owner}/spatial-circuits/blob/{branch}/book/tour.ipynb",
             f"https://mybinder.org/v2/gh/{owner}/spatial-circuits/{branch}?urlpath=lab/tree/book/tour.ipynb")
    assert [link in html for link in links] == [opens, opens]
    assert opens or not any(host in html for host in ("mybinder.org", "colab.research"))
    assert "executablebooks/jupyter-book" not in html  # Jupyter Book's default address


def test_binder_installs_the_locked_versions():
    lines = [x for x in (TOP / "binder" / "requirements.txt").read_text().splitlines() if not x.startswith("#")]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", "\n".join(lines), re.M))
    assert pins == {"torch": LOCKED["torch"]}
    [constraints] = [x.removeprefix("-c ") for x in lines if x.startswith("-c ")]
    assert (TOP / "binder" / constraints).resolve() == TOP / "constraints.txt"
    [extras] = re.findall(r"^-e \.\[([\w,]+)\]$", "\n".join(lines), re.M)  # from the top, where Binder runs pip
    known = re.findall(r"^(\w+) = \[", (TOP / "pyproject.toml").read_text(), re.M)
    assert set(extras.split(",")) <= set(known)
    assert (TOP / "binder" / "runtime.txt").read_text() == f"python-{PYTHON}\n"
    script = TOP / "binder" / "postBuild"
    assert os.access(script, os.X_OK) and script.read_text().startswith("#!")
    subprocess.run(["bash", "-n", script], check=True)
    assert list(TOP.glob(re.search(r"jupyter trust (\S+)", script.read_text())[1]))


def test_the_development_container_makes_the_same_environment():
    record = json.loads((TOP / ".devcontainer" / "devcontainer.json").read_text())
    assert record["image"].rpartition(":")[2].split("-")[0] == PYTHON
    target, torch = re.fullmatch(r"make (\S+) TORCH='(\S+) [^']+'", record["postCreateCommand"]).groups()
    assert torch == f"torch=={LOCKED['torch']}" and f"TORCH   ?= {torch}" in MAKEFILE
    assert f"READY := {target}" in MAKEFILE
    program = record["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert program.endswith(f"{target.split('/')[0]}/bin/python")
    workflow = yaml.safe_load((TOP / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["book-and-tests"]["steps"]
    assert [s["with"]["python-version"] for s in steps if "python-version" in s.get("with", {})] == [PYTHON]


DRAW = """
import sys
import spatial_circuits
from spatial_circuits.model.store import load, names
assert spatial_circuits.__file__.startswith(sys.argv[1]), spatial_circuits.__file__
picture = load("rte").images(["red square is above blue circle"], seeds=[0])
print(*names(), tuple(picture.shape), picture.float().std() > 10)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the files that git knows and an installation needs."""
    folder = tmp_path_factory.mktemp("source")
    wanted = ("lib", "README.md", "LICENSE", "pyproject.toml", "constraints.txt", "binder")
    listed = subprocess.run(["git", "ls-files", "-z", *wanted], cwd=TOP, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository: what belongs to the package is not known")
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((TOP / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    """A folder with wheel and sdist, made offline."""
    out = tmp_path_factory.mktemp("dist")
    for kind in ("sdist", "wheel"):
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        run = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
    return out


def test_pip_finds_what_binder_asks_for_among_the_locked_versions(source):
    """Without any index: everything is installed here, at those versions."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-build-isolation"]
    run = subprocess.run([*pip, "-r", "binder/requirements.txt"], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip().splitlines()[-1].startswith("Would install spatial-circuits")


def test_binder_trusts_the_notebooks(tmp_path):
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "JUPYTER_DATA_DIR": str(tmp_path)}
    run = subprocess.run([TOP / "binder" / "postBuild"], cwd=TOP, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Signing notebook: book/tour.ipynb" in run.stdout and run.stdout.splitlines()[-1].startswith("spatial-circuits ")


def test_wheel_and_sdist_hold_the_models(built):
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        packed = [name.partition("/")[2] for name in archive.getnames()]
    for name in (*names(), "vae"):
        file = f"spatial_circuits/pretrained/{name}/manifest.json"
        assert file in inside and f"lib/{file}" in packed
    assert not [n for n in inside if n.startswith(("tests", "book"))]


def test_an_installed_wheel_draws_without_the_repository(built, tmp_path):
    [wheel] = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([*pip, wheel], check=True, cwd=tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", DRAW, str(tmp_path)], cwd=tmp_path, env=environment,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == [*names(), *["(1,", "3,", "128,", "128)", "tensor(True)"]]
