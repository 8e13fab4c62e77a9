"""What each use case needs, and why. No torch, so that asking for a recipe stays quick."""

from dataclasses import dataclass

from lorimer.config import Metric, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetValues:
    """What a use case needs."""

    rank: int
    metric: Metric
    why: str
    rate_factor: float = 1.0
    """What the base's learning rate is multiplied by."""
    why_rate: str = ""


PRESETS: dict[Preset, PresetValues] = {
    "classification": PresetValues(rank=16, metric="label", why="labels are little information: a small rank holds them"),
    "extraction": PresetValues(rank=16, metric="exact_json", why="the form is learned quickly, the fields are little information"),
    "instruction": PresetValues(rank=32, metric="exact", why="varied answers need more room than labels"),
    "style": PresetValues(
        rank=16,
        metric="exact",
        why="manner is learned with little; a larger rank would also copy content",
        rate_factor=0.5,
        why_rate="half of it, so that manner changes before content does",
    ),
    "domain": PresetValues(
        rank=64,
        metric="contains",
        why="facts and terms are information: they need room",
        rate_factor=0.5,
        why_rate="half of it: long texts at a high rank diverge sooner",
    ),
    "chat": PresetValues(rank=32, metric="exact", why="several turns and tones need more room than labels"),
}
