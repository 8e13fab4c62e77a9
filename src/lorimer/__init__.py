"""Lorimer: from raw examples to a governed, served LoRA adapter, on hardware you already own."""

__version__ = "0.1.0"
