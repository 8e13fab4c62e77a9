"""What a run will do and need, before it does: the recipe and its preset resolved, rows counted, memory and time estimated."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorimer.config import Metric, Recipe
from lorimer.data.dataset import Dataset
from lorimer.data.example import Example
from lorimer.errors import ConfigError, TrainingError
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRAConfig
from lorimer.model.machine import Machine, probe
from lorimer.training.optim import OptimizerConfig
from lorimer.training.presets import PRESETS, PresetValues

ALPHA = 32.0  # fixed, so that the best learning rate hardly depends on the rank ("LoRA Without Regret", Schulman et al. 2025)
SMALL_BASE = 2_000_000_000  # parameters; small bases learn best at 1e-3, larger at 3e-4 (the field's sweeps over adapters)
MICRO_BATCH_TOKENS = 2048  # products are at full speed from about a thousand rows on
EFFICIENCY = (0.35, 0.8)  # share of the measured product rate that whole training steps reached
FIXED_BYTES = 900_000_000  # libraries, tokenizer, logits in flight
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An estimate that says how sure it is."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """A run, decided."""

    lora: LoRAConfig
    optimizer: OptimizerConfig
    metric: Metric
    batch_size: int
    num_steps: int
    tokens_per_micro_batch: int
    seed: int
    num_rows: int
    num_tokens: int
    """In one epoch."""
    num_supervised: int
    """In one epoch."""
    too_long: tuple[str, ...]
    """Sources of the rows that are left out because they exceed `max_len`."""
    max_len: int
    num_parameters: int
    adapter_bytes: int
    trainable_share: float
    """Adapter's parameters over those of base and adapter."""
    memory_bytes: Range
    seconds: Range
    reasons: dict[str, str]
    """Why a value was chosen, by its name."""

    @property
    def num_epochs(self) -> float:
        """Times each row is seen, on average."""
        return self.num_steps * self.batch_size / self.num_rows

    def to_json(self) -> dict[str, Any]:
        """The JSON value kept beside the run."""
        return {**asdict(self), "num_epochs": self.num_epochs}


def metric_of(recipe: Recipe) -> Metric:
    """How answers are scored: the recipe's word, else its preset's."""
    return recipe.metric or PRESETS[recipe.preset].metric


def render_split(base: Base, examples: Sequence[Example], max_len: int) -> tuple[list[Rendered], tuple[str, ...]]:
    """Rows as ids and masks, and the sources of those longer than `max_len`, which are left out."""
    rows, too_long = [], []
    for example in examples:
        rendered = base.renderer.render_example(example)
        if len(rendered.ids) <= max_len:
            rows.append(rendered)
        else:
            too_long.append(example.source)
    return rows, tuple(too_long)


def plan(recipe: Recipe, dataset: Dataset, base: Base) -> TrainingPlan:
    """Resolve a recipe against its dataset and base.

    Raises:
        ConfigError: if the recipe asks for what the base cannot give.
        TrainingError: if nothing would be learned, or the machine's memory cannot hold it.
    """
    preset, machine = PRESETS[recipe.preset], probe()
    reasons: dict[str, str] = {}
    max_len = _max_len(recipe, base)
    rows, too_long = render_split(base, dataset.train, max_len)
    if not rows:
        raise TrainingError(
            f"dataset {dataset.name!r} has no training row of at most {max_len} tokens ({len(too_long)} are longer): raise `max_len`"
        )
    targets = _targets(recipe, base)
    rank = _choose(reasons, "rank", recipe.rank, *_rank(preset, len(rows)))
    lora = LoRAConfig(
        rank=rank,
        alpha=_choose(reasons, "alpha", recipe.alpha, ALPHA, "fixed: the best learning rate then hardly depends on the rank"),
        target_modules=targets,
    )
    learning_rate = _choose(reasons, "learning_rate", recipe.learning_rate, *_learning_rate(base))
    batch_size = min(_choose(reasons, "batch_size", recipe.batch_size, 16, "adapters learn better from small batches"), len(rows))
    num_steps = recipe.steps or max(1, round(_choose(reasons, "epochs", recipe.epochs, *_epochs(len(rows))) * len(rows) / batch_size))
    num_parameters = sum(rank * (base.layers[name].in_features + base.layers[name].out_features) for name in targets)
    num_tokens, num_supervised = sum(len(r.ids) for r in rows), sum(r.num_supervised for r in rows)
    num_seen = num_steps * batch_size / len(rows)
    result = TrainingPlan(
        lora=lora,
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        metric=metric_of(recipe),
        batch_size=batch_size,
        num_steps=num_steps,
        tokens_per_micro_batch=max(MICRO_BATCH_TOKENS, max(len(r.ids) for r in rows)),
        seed=recipe.seed,
        num_rows=len(rows),
        num_tokens=num_tokens,
        num_supervised=num_supervised,
        too_long=too_long,
        max_len=max_len,
        num_parameters=num_parameters,
        adapter_bytes=4 * num_parameters,
        trainable_share=num_parameters / (base.num_parameters + num_parameters),
        memory_bytes=_memory(base, num_parameters, min(MICRO_BATCH_TOKENS, num_tokens), max(len(r.ids) for r in rows)),
        seconds=_seconds(base, machine, num_tokens * num_seen, num_supervised * num_seen),
        reasons=reasons,
    )
    if result.memory_bytes.low > machine.memory_bytes:
        raise TrainingError(
            f"the run needs at least {result.memory_bytes.low / 1e9:.1f} GB, this machine has {machine.memory_bytes / 1e9:.1f} GB: "
            "take a smaller base, or shorter rows with `max_len`"
        )
    return result


def _choose(reasons: dict[str, str], name: str, given: Any, chosen: Any, why: str) -> Any:
    """The recipe's value, else ours with its reason."""
    if given is not None:
        reasons[name] = "given in the recipe"
        return given
    reasons[name] = why
    return chosen


def _max_len(recipe: Recipe, base: Base) -> int:
    if recipe.max_len is not None and recipe.max_len > base.max_len:
        raise ConfigError(f"`max_len` is {recipe.max_len}, but base {base.name!r} reads at most {base.max_len} tokens")
    return recipe.max_len or min(base.max_len, 2048)


def _targets(recipe: Recipe, base: Base) -> tuple[str, ...]:
    """Full names of the layers to adapt: all linear ones but the head, or those whose names end as the recipe says."""
    if recipe.targets is None:
        return tuple(base.layers)
    found = {ending: [name for name in base.layers if name == ending or name.endswith(f".{ending}")] for ending in recipe.targets}
    unknown = [ending for ending, names in found.items() if not names]
    if unknown:
        there = sorted({name.rpartition(".")[2] for name in base.layers})
        raise ConfigError(
            f"`targets`: base {base.name!r} has no linear layer named {', '.join(map(repr, unknown))}; it has {', '.join(there)}"
        )
    chosen = {name for names in found.values() for name in names}
    return tuple(name for name in base.layers if name in chosen)


def _rank(preset: PresetValues, num_rows: int) -> tuple[int, str]:
    floor = 16 if num_rows < 5_000 else 32 if num_rows < 50_000 else 64
    return max(preset.rank, floor), preset.why if preset.rank >= floor else f"{num_rows} rows are more than rank {preset.rank} should hold"


def _learning_rate(base: Base) -> tuple[float, str]:
    if base.num_parameters < SMALL_BASE:
        return 1e-3, "the best rate for adapters on bases below 2B parameters, ten times full fine-tuning's"
    return 3e-4, "the best rate for adapters on bases of 2B parameters and more, ten times full fine-tuning's"


def _epochs(num_rows: int) -> tuple[float, str]:
    epochs = 3.0 if num_rows < 1_000 else 2.0 if num_rows < 10_000 else 1.0
    return epochs, f"{num_rows} rows: few rows are seen more often"


def _memory(base: Base, num_parameters: int, micro_tokens: int, longest: int) -> Range:
    """Base, adapter with optimizer state, and what one micro-batch keeps for its backward pass.

    Bytes a token and layer keeps with float32 inside its norms, from the shapes of its linear layers; measured in dev/LOG.md.
    """
    sizes = [(layer.in_features, layer.out_features) for layer in base.layers.values()]
    element = base.head.weight.element_size()
    per_token = sum(element * (i + 2 * o) for i, o in sizes) + 40 * base.num_layers * base.head.weight.shape[1]
    base_bytes = sum(p.numel() * p.element_size() for p in base.model.parameters())
    whole = FIXED_BYTES + base_bytes + 16 * num_parameters + per_token * max(micro_tokens, longest)
    return Range(low=0.8 * whole, high=1.3 * whole)


def _seconds(base: Base, machine: Machine, num_tokens: float, num_supervised: float) -> Range:
    """Four operations a weight and token (forward, and backward to the inputs), six in adapters; the head on learned tokens only."""
    weights = sum(layer.in_features * layer.out_features for layer in base.layers.values())
    flops = 4 * weights * num_tokens + 4 * base.head.weight.numel() * num_supervised
    slow, fast = (flops / (machine.flops_per_second * share) for share in EFFICIENCY)
    return Range(low=fast, high=slow)


def describe(plan: TrainingPlan) -> Mapping[str, str]:
    """The plan in lines a person reads."""
    why_epochs = plan.reasons.get("epochs", "steps given in the recipe")
    low, high = plan.seconds.low / 60, plan.seconds.high / 60
    lines = {
        "rows": f"{plan.num_rows} of {plan.num_rows + len(plan.too_long)}, {plan.num_tokens} tokens, {plan.num_supervised} of them learned",
        "steps": f"{plan.num_steps} of {plan.batch_size} rows, {plan.num_epochs:.1f} epochs ({why_epochs})",
        "rank": f"{plan.lora.rank} ({plan.reasons['rank']})",
        "alpha": f"{plan.lora.alpha:g} ({plan.reasons['alpha']})",
        "learning rate": f"{plan.optimizer.learning_rate:g} ({plan.reasons['learning_rate']})",
        "layers": f"{len(plan.lora.target_modules)} linear layers",
        "adapter": f"{plan.num_parameters} parameters, {plan.trainable_share:.2%} of all, {plan.adapter_bytes / 1e6:.1f} MB",
        "memory": f"{plan.memory_bytes.low / 1e9:.1f} to {plan.memory_bytes.high / 1e9:.1f} GB",
        "time": f"{low:.1f} to {high:.1f} minutes",
        "scored by": plan.metric,
    }
    if plan.too_long:
        shown = ", ".join(plan.too_long[:MAX_SHOWN]) + (" ..." if len(plan.too_long) > MAX_SHOWN else "")
        lines["left out"] = f"{len(plan.too_long)} rows longer than {plan.max_len} tokens: {shown}"
    return lines
