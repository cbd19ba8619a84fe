"""Settings that all tests share: offline, no display, no time limit for property tests."""

import os
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, also for children
    signal.signal(signal.SIGINT, signal.default_int_handler)
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # several at a time share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
USERS_CACHE = os.environ.get("SPATIAL_CIRCUITS_CACHE")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("default")


# Files that take minutes, the longest first: what comes last must be short, or one of several workers waits for it.
LONG = ("test_notebooks.py", "test_site.py", "test_workflow.py", "test_study.py", "test_live_page.py", "test_study_text.py",
        "test_scene_cache.py", "test_open_anywhere.py", "test_widgets.py", "test_chunks.py")


def pytest_collection_modifyitems(items):
    assert not [name for name in LONG if not (Path(__file__).parent / name).exists()]
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def scene_cache(tmp_path_factory):
    """Encoded scenes of the tests lie in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPATIAL_CIRCUITS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def users_cache():
    """A function that lets a patch put back the user's own cache: for exports of shipped models, which take minutes."""
    def use(patch: pytest.MonkeyPatch) -> None:
        if USERS_CACHE is None:
            patch.delenv("SPATIAL_CIRCUITS_CACHE", raising=False)
        else:
            patch.setenv("SPATIAL_CIRCUITS_CACHE", USERS_CACHE)
    return use


@pytest.fixture(scope="session")
def page_runtime(users_cache):
    """The folder of the pages' runtime; without npm, or a registry that it reaches, what needs it is skipped."""
    from spatial_circuits.live import runtime
    with pytest.MonkeyPatch.context() as patch:
        users_cache(patch)
        try:
            return runtime.runtime_folder()
        except OSError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def vae():
    """The shipped VAE."""
    from spatial_circuits.model.store import load_vae
    return load_vae()


@pytest.fixture(scope="session")
def rte():
    """The default text encoder: 128 dimensions, position code."""
    from spatial_circuits.text.encoders import encoder
    return encoder("rte")


@pytest.fixture
def atom(monkeypatch):
    """A model size for tests: 2 blocks, 2 heads of 8 dimensions."""
    from spatial_circuits.model import transformer as dit
    monkeypatch.setitem(dit.SIZES, "atom", (2, 2, 8))
    return "atom"


@pytest.fixture
def one_thread():
    """One thread, as a run with --threads 1 has; the number is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def lively():
    """A function (text dimension, seed) -> small untrained model whose zero layers are filled: text moves its output."""
    from spatial_circuits.model import transformer as dit

    def build(text_dim: int = 128, seed: int = 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(dit.SIZES, "atom", (2, 2, 8))
            model = dit.build_transformer("atom", text_dim, seed)
        generator = torch.Generator().manual_seed(seed)
        for layer in [model.proj_out, *(block.attn2.to_out[0] for block in model.transformer_blocks)]:
            torch.nn.init.normal_(layer.weight, std=0.3, generator=generator)
        return model.eval().requires_grad_(False)
    return build


@pytest.fixture(scope="session")
def saved(tmp_path_factory, lively):
    """The folder of an untrained model, written by `pretrained.save`."""
    from spatial_circuits.model.noise import Noise
    from spatial_circuits.model.store import save_model
    return save_model(tmp_path_factory.mktemp("models") / "untrained", lively(), {"name": "rte", "options": {}}, noise=Noise(),
                command="none: untrained")


@pytest.fixture(scope="session")
def tiny(lively, rte, vae):
    """An untrained model, ready to sample: 2 layers of 2 heads of 8 dimensions. Nobody may change it."""
    from spatial_circuits.model.noise import Noise
    from spatial_circuits.model.pipeline import Model
    return Model("tiny", lively(), Noise().scheduler(), rte, vae, Noise(), {"name": "rte", "options": {}}, Path("tiny"))


class Album:
    """In place of a VAE: keeps the latents it is to decode, and gives the next of its pictures (grey ones by default)."""

    def __init__(self, pictures=None):
        self.pictures, self.seen = pictures, []

    def decode(self, latents):
        start = sum(map(len, self.seen))
        self.seen.append(latents)
        grey = torch.full((len(latents), 3, 128, 128), 128, dtype=torch.uint8)
        return grey if self.pictures is None else self.pictures[start:start + len(latents)]

    @property
    def latents(self):
        return torch.cat(self.seen)


@pytest.fixture(scope="session")
def album():
    """The class Album."""
    return Album


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, from the system (see the Makefile)."""
    import shutil
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine; Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
