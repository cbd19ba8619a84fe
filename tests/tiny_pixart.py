"""Tiny diffusers pipelines around a PixArt transformer, as the library builds and saves them."""
import torch

from spatial_circuits.analyses.locate import by_mask
from spatial_circuits.model.export import random_pipeline as pipeline
from spatial_circuits.model.export import save_pipeline as as_pipeline

__all__ = ["as_pipeline", "halves", "pipeline", "saved"]


def saved(tmp_path_factory, **options):
    """The folder of a pipeline with the Euler scheduler, as diffusers saves it."""
    place = tmp_path_factory.mktemp("stock") / "pipe"
    pipeline(scheduler="euler", **options).save_pretrained(place)
    return place


def halves(places: int):
    """A mask by hand, of so many places a side: the first thing fills the left quarter, the second the right half."""
    masks = torch.zeros(2, places, places, dtype=torch.bool)
    masks[0, :, :places // 4] = masks[1, :, places // 2:] = True
    return by_mask(masks)
