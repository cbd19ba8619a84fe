"""Spatial Circuits: train small diffusion transformers and study how they place two objects."""

__version__ = "0.1.0"
