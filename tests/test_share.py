"""A film of a denoising: a frame a step, the picture beside what a head looks at, and clear refusals."""
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from spatial_circuits.book import share
from spatial_circuits.cli import main
from spatial_circuits.hooks.readers import Patterns
from spatial_circuits.hooks.run import run
from spatial_circuits.model import pipeline

PROMPT = "red square is directly above blue circle"
STEPS = 5


@pytest.fixture(scope="module")
def frames(tiny):
    return share.film(tiny, PROMPT, seed=3, head=(1, 0), steps=STEPS)


def panels(frame: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right panel [256, 256, 3] of a frame, one line of text above them."""
    pixels = np.asarray(frame)[44:300]
    return pixels[:, 16:272], pixels[:, 288:544]


def test_a_frame_a_step_and_all_of_one_size(frames):
    assert len(frames) == STEPS and {f.size for f in frames} == {(560, 344)}


def test_the_picture_forms_on_the_left(tiny, frames):
    guesses = []
    tiny.latents([PROMPT], [3], steps=STEPS, on_guess=lambda i, x: guesses.append(x.clone()))
    for frame, guess in zip(frames, guesses):
        picture = tiny.vae.decode(guess)[0].permute(1, 2, 0).repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert (torch.from_numpy(panels(frame)[0].copy()).int() - picture.int()).abs().max() <= 1


def test_the_head_s_map_of_the_relation_is_on_the_right(tiny, frames):
    reader = Patterns([(1, 0)])
    run(tiny, [PROMPT], [3], reader, steps=STEPS)
    tokens = tiny.encoder.encode([PROMPT]).tokens[0]
    seen = reader.maps[1, 0][0][..., [tokens.index(w) for w in ("directly", "above")]].sum(-1)
    for frame, attention in zip(frames, seen):
        colours = matplotlib.colormaps["viridis"](attention.view(8, 8).numpy())[..., :3] * 255
        assert np.abs(panels(frame)[1][16::32, 16::32] - colours).max() <= 1


@pytest.mark.parametrize("ending", ["gif", "webp", "GIF"])
def test_it_is_written_as_an_endless_film(frames, tmp_path, ending):
    path = share.save_film(frames, tmp_path / "new" / f"film.{ending}", pause=100, hold=900)
    film = Image.open(path)
    assert (film.n_frames, film.size, film.info["loop"]) == (STEPS, (560, 344), 0)
    assert path.stat().st_size < 500_000 and [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="film.png must end in .gif or .webp"):
        share.save_film(frames, tmp_path / "film.png")


def test_the_head_is_the_one_with_the_largest_ramp(tiny):
    from spatial_circuits.model.store import load
    assert share.strongest_ramp(load("rte-biased"), "red square is above blue circle") == (0, 0)
    with pytest.raises(ValueError, match="'red square' says no relation"):
        share.strongest_ramp(tiny, "red square")


def test_the_command_writes_a_film(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["share", "--model", str(saved), "--prompt", PROMPT, "--head", "L0H1", "--out", "a.gif"]) == 0
    assert Image.open("a.gif").n_frames == 14 and capsys.readouterr().out == "wrote a.gif\n"


@pytest.mark.parametrize("arguments, needle", [
    (["--out", "film.mp4"], "film.mp4 must end in .gif or .webp"),
    (["--prompt", "red square"], "'red square' says no relation"),
    (["--prompt", ""], "says no relation"),
    (["--prompt", "red hexagon is above blue circle"], "'hexagon'"),
    (["--head", "3.1"], "not of the form L2H3"),
    (["--head", "L9H9"], "L9H9 is out of range")])
def test_what_cannot_be_drawn_is_refused_before_sampling(saved, tmp_path, monkeypatch, capsys, arguments, needle):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "sample_latents", lambda *_, **__: pytest.fail("it sampled"))
    assert main(["share", "--model", str(saved), *arguments]) == 2
    said = capsys.readouterr().err
    assert needle in said and said.count("\n") == 1 and not list(tmp_path.iterdir())
