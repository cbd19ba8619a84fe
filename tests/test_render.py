"""Render: what is drawn, where, in which colour, and what `export` writes."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from spatial_circuits.data.captions import captions
from spatial_circuits.data.render import BACKGROUND, RGB, Scene, export, render
from spatial_circuits.data.scenes import RELATIONS, SHAPES, sample_scenes

AREA = {"circle": torch.pi * 16 ** 2, "square": 32 ** 2, "triangle": 3 ** 0.5 / 4 * 32 ** 2}  # px


@pytest.mark.parametrize("shape", range(3))
def test_area_and_centroid_of_a_shape(shape):
    scenes = sample_scenes(torch.arange(12),
                           shape=torch.tensor([[shape, (shape + 1) % 3]]).expand(12, 2))
    images = render(scenes).float()
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    for image, color, xy in zip(images, scenes.color[:, 0], scenes.xy[:, 0]):
        # in the other's channel this object is darker than the grey, by its coverage
        other = 1 - color
        cover = (1 - image[RGB[other].argmax()] / BACKGROUND).clamp(min=0)
        assert cover.sum() == pytest.approx(AREA[SHAPES[shape]], rel=0.01)
        centroid = torch.stack([(cover * x).sum(), (cover * y).sum()]) / cover.sum()
        assert (centroid - xy).abs().max() < 0.05


def test_colors_background_and_order():
    scenes = sample_scenes(torch.arange(300), 4, "paper")
    images = render(scenes, antialias=False)
    palette = {tuple(c)
               for c in images[:20].permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0).tolist()}
    assert palette == {(BACKGROUND,) * 3, (255, 0, 0), (0, 0, 255)}
    row = torch.arange(300)
    assert torch.equal(images[row, :, scenes.xy[:, 1, 1], scenes.xy[:, 1, 0]].long(),
                       RGB[scenes.color[:, 1]])
    hidden = (images[row, :, scenes.xy[:, 0, 1],
                     scenes.xy[:, 0, 0]].long() != RGB[scenes.color[:, 0]]).any(1)
    assert 0 < hidden.sum() < 60  # the first object's middle is covered now and then, by the second
    soft = render(scenes)
    assert soft.dtype == torch.uint8
    assert soft.shape == (300, 3, 128, 128)
    assert len(soft[0].unique()) > 3


def test_a_picture_does_not_depend_on_its_batch():
    scenes = sample_scenes(torch.arange(20), 1, "paper")
    assert torch.equal(render(scenes), torch.cat([render(s) for s in scenes]))


@pytest.mark.parametrize("x", [15, 112])
def test_a_position_too_near_the_edge_is_refused(x):
    scenes = sample_scenes(torch.arange(1))
    with pytest.raises(ValueError, match=rf"{x}.*must lie in 16\.\.111"):
        render(scenes.replace(xy=torch.tensor([[[x, 60], [60, 60]]])))


def test_a_scene_draws_itself_and_says_its_caption():
    scenes = sample_scenes(torch.arange(3))
    scene = Scene(scenes[2])
    assert str(scene) == scene.caption == captions(scenes)[2]
    assert np.array_equal(np.asarray(scene.image), render(scenes)[2].permute(1, 2, 0).numpy())
    assert scene._repr_png_().startswith(b"\x89PNG")


@pytest.fixture
def exported(tmp_path):
    scenes = sample_scenes(torch.arange(5), 7)
    return scenes, export(scenes, tmp_path / "set")


def test_export_writes_pictures_and_metadata(exported):
    scenes, folder = exported
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert sorted(p.name for p in folder.iterdir()) == [*(r["file_name"] for r in rows),
                                                        "metadata.jsonl"]
    assert [r["text"] for r in rows] == captions(scenes)
    assert [RELATIONS.index(r["relation"]) for r in rows] == scenes.relation.tolist()
    assert [r["xy"] for r in rows] == scenes.xy.tolist()
    for row, pixels in zip(rows, render(scenes)):
        assert np.array_equal(np.asarray(Image.open(folder / row["file_name"])),
                              pixels.permute(1, 2, 0).numpy())
    with pytest.raises(FileExistsError, match="set holds 000000.png; choose a new or empty folder"):
        export(scenes, folder)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["000000.png", "thesis.txt", ".hidden"])
def test_export_refuses_a_folder_with_files_of_others(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds {name}"):
        export(sample_scenes(torch.arange(2)), tmp_path)
    assert contents(tmp_path) == {name: b"mine"}
    with pytest.raises(FileExistsError, match="is a file"):
        export(sample_scenes(torch.arange(2)), tmp_path / name)


def test_a_smaller_export_over_a_larger_one_is_refused_even_without_its_metadata(exported):
    scenes, folder = exported
    (folder / "metadata.jsonl").unlink()
    before = contents(folder)
    with pytest.raises(FileExistsError, match="holds 000000.png"):
        export(scenes[:2], folder)
    assert contents(folder) == before


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch, exists, error):
    folder, save = tmp_path / "set", Image.Image.save
    if exists:
        folder.mkdir()

    def full(image, path):
        if path.name == "000002.png":
            path.write_bytes(b"")
            raise error
        save(image, path)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(type(error),
                       match="cannot write scenes to .*set: No space" if error.args else None):
        export(sample_scenes(torch.arange(5)), folder)
    assert folder.exists() == exists and not (exists and list(folder.iterdir()))


def test_datasets_reads_an_export(exported, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the optional extra `datasets`")
    scenes, folder = exported
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train",
                                   cache_dir=str(tmp_path / "cache"))
    assert loaded["text"] == captions(scenes) and loaded[0]["image"].size == (128, 128)
