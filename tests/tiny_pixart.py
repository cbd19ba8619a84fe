"""Tiny diffusers pipelines around a PixArt transformer, as the library builds and saves them."""
from spatial_circuits.model.export import random_pipeline as pipeline
from spatial_circuits.model.export import save_pipeline as as_pipeline

__all__ = ["as_pipeline", "pipeline"]
