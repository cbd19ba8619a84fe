"""The detector finds what `render` drew, and the two modes differ where the module says so."""
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_circuits.data.detect import Detection, detect, detect_batch, masks
from spatial_circuits.data.render import RGB, render
from spatial_circuits.data.scenes import SHAPES, Scenes, sample_scenes

GREY = np.full((128, 128, 3), 128, np.uint8)


def canvas(*boxes: tuple[int, int, int, int, tuple[int, int, int]]) -> np.ndarray:
    """Grey image [128, 128, 3] with filled boxes (x, y, w, h, RGB), later ones on top."""
    image = GREY.copy()
    for x, y, w, h, rgb in boxes:
        image[y:y + h, x:x + w] = rgb
    return image


def of_color(found: list[Detection], rgb: torch.Tensor) -> list[Detection]:
    """Detections whose brightest channel is that of `rgb`."""
    return [d for d in found if int(np.argmax(d.color)) == int(rgb.argmax())]


def errors(found: list[list[Detection]], scenes: Scenes) -> tuple[float, float]:
    """Share of objects not found exactly once as their shape, and found as another shape."""
    missed = wrong = 0
    for i, blobs in enumerate(found):
        for k in range(2):
            names = [d.shape for d in of_color(blobs, RGB[scenes.color[i, k]])]
            truth = SHAPES[scenes.shape[i, k]]
            missed += names.count(truth) != 1
            wrong += any(n in SHAPES and n != truth for n in names)
    return missed / len(scenes) / 2, wrong / len(scenes) / 2


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 2**40), seed=st.integers(0, 2**31), antialias=st.booleans())
def test_clean_scene_is_found_exactly(index, seed, antialias):
    scenes = sample_scenes(torch.tensor([index]), seed)
    found = detect(render(scenes, antialias=antialias)[0])
    assert len(found) == 2
    for k in range(2):
        ink = RGB[scenes.color[0, k]]
        (blob,) = of_color(found, ink)
        assert blob.shape == SHAPES[scenes.shape[0, k]]
        assert np.abs(np.array(blob.color) - ink.numpy()).max() < 25
        assert np.abs(np.array(blob.center) - scenes.xy[0, k].numpy()).max() < 1


def test_paper_mode_puts_a_triangle_too_high_and_nothing_else():
    scenes = sample_scenes(torch.arange(40))
    for mode, shift in (("paper", (-5.1, -3.9)), ("clean", (-0.5, 0.5))):
        for i, blobs in enumerate(detect_batch(render(scenes), mode)):
            for k in range(2):
                (blob,) = of_color(blobs, RGB[scenes.color[i, k]])
                dx, dy = np.array(blob.center) - scenes.xy[i, k].numpy()
                low, high = shift if blob.shape == "triangle" else (-0.5, 0.5)
                assert abs(dx) < 0.5 and low <= dy <= high


@pytest.mark.parametrize("rgb, channels",
                         [((255, 255, 255), 3), ((255, 255, 0), 2), ((200, 0, 255), 2),
                                           ((190, 240, 200), 3)])
def test_a_mixed_color_is_one_blob_in_clean_mode(rgb, channels):
    image = canvas((40, 50, 33, 33, rgb))
    assert len(detect(image, "paper")) == channels
    (blob,) = detect(image)
    assert (blob.shape, blob.color) == ("square", rgb)
    assert (blob.center, blob.bbox) == ((56.0, 66.0), (40, 50, 33, 33))


def test_color_leaves_out_what_lies_in_a_hole():
    image = canvas((30, 30, 50, 50, (255, 0, 0)), (40, 40, 30, 30, (0, 0, 255)))
    assert detect(image, "paper")[0].color == (163, 0, 91)  # 1,600 red and 900 blue pixels
    assert [d.color for d in detect(image)] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("mode", ["clean", "paper"])
def test_area_and_side_limits(mode):
    red = (255, 0, 0)
    assert detect(GREY, mode) == []
    assert detect(canvas((40, 40, 10, 10, red)), mode) == []  # contour area 81
    assert detect(canvas((40, 40, 11, 11, red)), mode)[0].area == 100
    assert detect(canvas((40, 40, 20, 24, red)), mode)[0].shape == "square"
    assert detect(canvas((40, 40, 20, 25, red)), mode)[0].shape == "rectangle"
    assert detect(canvas((40, 40, 20, 20, (180, 0, 0))), mode) == []
    assert len(detect(canvas((40, 40, 20, 20, (181, 0, 0))), mode)) == 1


def test_clean_mode_is_better_on_overlapping_scenes():
    scenes = sample_scenes(torch.arange(500), 3, "paper")
    images = render(scenes)
    missed, wrong = errors(detect_batch(images), scenes)
    paper_missed, paper_wrong = errors(detect_batch(images, "paper"), scenes)
    assert wrong < 0.01 < 0.03 < paper_wrong
    assert missed < paper_missed


def test_clean_mode_sees_few_shapes_in_noise():
    noise = torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=128, mode="bicubic")
    images = (smooth * 80 + 128).clamp(0, 255).byte()
    clean, paper = (sum(d.shape in SHAPES for blobs in detect_batch(images, mode) for d in blobs)
                    for mode in ("clean", "paper"))
    assert clean < paper / 4


@pytest.mark.parametrize("mode", ["clean", "paper"])
def test_blurred_scenes_keep_their_shapes(mode):
    scenes = sample_scenes(torch.arange(60), 1)
    soft = [cv2.GaussianBlur(im.permute(1, 2, 0).numpy(), (0, 0), 1.5) for im in render(scenes)]
    assert errors([detect(im, mode) for im in soft], scenes) == (0, 0)


def test_array_tensor_and_batch_agree():
    images = render(sample_scenes(torch.arange(5)))
    batch = detect_batch(images)
    for image, expected in zip(images, batch):
        array = image.permute(1, 2, 0).numpy()
        for found in (detect(image), detect(array), detect(np.ascontiguousarray(array))):
            assert [d[:-1] for d in found] == [d[:-1] for d in expected]


def test_masks_share_of_cells():
    (blob,) = detect(canvas((16, 32, 24, 24, (0, 0, 255))))  # covers 1.5 x 1.5 cells of 16 px
    expected = torch.zeros(8, 8)
    expected[2:4, 1:3] = torch.tensor([[1, 0.5], [0.5, 0.25]])
    assert torch.allclose(masks([blob]), expected[None], atol=1e-6)
    assert masks([]).shape == (0, 8, 8)


@pytest.mark.parametrize("image",
                         [torch.zeros(128, 128, 3, dtype=torch.uint8), torch.zeros(3, 8, 8),
                                   np.zeros((3, 128, 128), np.uint8),
                          np.zeros((128, 128), np.uint8)])
def test_wrong_images_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        detect(image)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        detect_batch(image)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'strict' is not one of clean, paper"):
        detect(GREY, "strict")
    with pytest.raises(ValueError, match="clean, paper"):
        detect_batch(torch.zeros(0, 3, 128, 128, dtype=torch.uint8), "strict")
