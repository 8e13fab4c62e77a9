"""What a run will do and need, before it does: the recipe and its preset resolved, rows inspected, memory counted, time probed."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lorimer.config import COMPARISON_METHODS, Method, Metric, Recipe
from lorimer.data.dataset import Dataset
from lorimer.data.shards import contradictions
from lorimer.errors import ConfigError, TrainingError
from lorimer.model.base import Base
from lorimer.model.lora import LoRAConfig
from lorimer.model.machine import probe
from lorimer.training.calibration import Correction, correction_of_bytes, correction_of_seconds
from lorimer.training.checks import Finding
from lorimer.training.inspection import LearningReport, describe_report, inspect, refuse_waste
from lorimer.training.needs import Work, estimate_seconds, fit_memory, frozen_layer
from lorimer.training.optim import OptimizerConfig
from lorimer.training.presets import PRESETS
from lorimer.training.rank import AUTO_RANK, require_rows
from lorimer.training.servability import Verdict, servable, servable_together
from lorimer.training.targets import choose_layers, ranks_by_name, refuse_impossible_ranks, targets_of

ALPHA = 32.0  # fixed, so that the best learning rate hardly depends on the rank ("LoRA Without Regret", Schulman et al. 2025)
SMALL_BASE = 2_000_000_000  # parameters; small bases learn best at 1e-3, larger at 3e-4 (the field's sweeps over adapters)
UNKNOWN_SECONDS, UNKNOWN_BYTES = (0.75, 1.4), (0.9, 1.15)  # ranges while no run was finished here; measured in dev/LOG.md
B_RATE_RATIO = 16.0  # LoRA+
SHAPE_KEYS = ("method", "rank", "rank_pattern", "alpha", "targets", "layers")
DECIDING = (
    *("method", "lora", "optimizer", "preference", "batch_size", "num_steps", "tokens_per_micro_batch", "is_checkpointed"),
    *("from_layer", "rank_margin", "validate_every", "patience", "seed", "max_len", "dtype"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An estimate that says how sure it is."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePlan:
    """Learning from pairs."""

    reference: str
    beta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """A run, decided."""

    method: Method
    lora: LoRAConfig
    optimizer: OptimizerConfig
    preference: PreferencePlan | None
    metric: Metric
    batch_size: int
    num_steps: int
    tokens_per_micro_batch: int
    is_checkpointed: bool
    """Whether layers are computed again in the backward pass, because memory does not allow to keep what they need."""
    from_layer: int
    """Layers below it are run once and their states kept; 0 keeps nothing."""
    rank_margin: float | None
    """With automatic rank: what may be lost."""
    validate_every: int | None
    patience: int | None
    seed: int
    max_len: int
    dtype: str
    report: LearningReport
    num_shards: int
    """More than one where a sharded recipe is planned as a whole: so many adapters of such a shape, in so many steps together."""
    num_parameters: int
    """Of one adapter."""
    adapter_bytes: int
    trainable_share: float
    """Adapter's parameters over those of base and adapter."""
    resident_bytes: int
    """What this adapter adds to a base that is already loaded: masters, gradients, optimizer."""
    uncorrected_bytes: float
    uncorrected_seconds: float
    machine: str
    memory_bytes: Range
    seconds: Range
    price: Range | None
    num_computed_tokens: int
    """Places in the streams of all steps: the rows' tokens less what shared prefixes save."""
    serving: tuple[Verdict, ...]
    reasons: dict[str, str]
    """Why a value was chosen, by its name."""

    @property
    def num_rows(self) -> int:
        """Training rows that fit."""
        return self.report.num_rows

    @property
    def num_epochs(self) -> float:
        """Times each row is seen, on average."""
        return self.num_steps * self.batch_size / self.num_rows

    @property
    def decisions(self) -> dict[str, Any]:
        """All that decides the adapter's bytes, beside base and dataset."""
        value = {name: getattr(self, name) for name in DECIDING}
        value |= {name: asdict(value[name]) for name in ("lora", "optimizer")}
        value["preference"] = self.preference and asdict(self.preference)
        value["lora"]["ranks"] = dict(value["lora"]["ranks"])
        value["lora"]["target_modules"] = list(self.lora.target_modules)
        value["optimizer"]["betas"] = list(self.optimizer.betas)
        return value

    def to_json(self) -> dict[str, Any]:
        """The JSON value kept beside the run."""
        names = (
            "metric",
            "num_shards",
            "num_parameters",
            "adapter_bytes",
            "trainable_share",
            "num_computed_tokens",
            "reasons",
            "num_rows",
            "num_epochs",
        )
        value: dict[str, Any] = {name: getattr(self, name) for name in names}
        ranges = {name: asdict(part) for name in ("memory_bytes", "seconds", "price") if (part := getattr(self, name)) is not None}
        return {
            **self.decisions,
            **value,
            **ranges,
            "serving": [asdict(verdict) for verdict in self.serving],
            "findings": [asdict(finding) for finding in self.findings],
        }

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found in the rows."""
        return self.report.findings


def metric_of(recipe: Recipe) -> Metric:
    """How answers are scored: the recipe's word, else its preset's."""
    return recipe.metric or PRESETS[recipe.preset].metric


def plan(recipe: Recipe, dataset: Dataset, base: Base, progress: Callable[[int, int], None] | None = None) -> TrainingPlan:
    """Resolve a recipe against its dataset and base.

    Raises:
        ConfigError: if the recipe asks for what the base cannot give.
        TrainingError: if nothing would be learned, or the machine's memory cannot hold it.
    """
    reasons: dict[str, str] = {}
    _refuse_contradictions(recipe)
    num_shards = recipe.privacy.shards if recipe.privacy else 1
    machine, config = probe(), base.model.config.get_text_config()
    # 1) what is adapted, and how
    lora = _lora(recipe, base, len(dataset.train) // num_shards, reasons)
    optimizer = OptimizerConfig(
        learning_rate=choose(reasons, "learning_rate", recipe.learning_rate, *learning_rate_for(recipe, base.num_parameters)),
        b_rate_ratio=B_RATE_RATIO if recipe.method == "lora_plus" else 1.0,
    )
    num_parameters = _num_parameters(lora, base)
    # 2) what is learned from
    max_len = max_len_for(recipe, base.name, base.max_len)
    report = inspect(dataset, base.renderer, max_len=max_len, num_parameters=num_parameters, progress=progress)
    if not report.num_rows:
        raise TrainingError(
            f"dataset {dataset.name!r} has no training row of at most {max_len} tokens ({report.too_long.count} are longer): raise it"
        )
    if recipe.rank == "auto":
        require_rows(len(report.rendered["validation"]))
    is_preference = recipe.preference is not None
    if is_preference != bool(report.rejected["train"]):
        refuse_waste(report)  # rows of both kinds are a defect of their own, and the clearer thing to say
        has = "no rejected answers" if is_preference else "chosen and rejected answers"
        raise ConfigError(
            f"dataset {dataset.name!r} has {has}: `preference:` in the recipe goes with rows that have both, and only with them"
        )
    batch_size, num_steps = steps_for(recipe, max(1, report.num_rows // num_shards), reasons)
    num_steps *= num_shards
    # 3) what its steps compute and keep, from their real rows, and how long that takes here
    work = Work(base=base, lora=lora, report=report, batch_size=batch_size, num_steps=num_steps, seed=recipe.seed)
    from_layer = frozen_layer(work, machine)
    fit = fit_memory(work, machine)
    reasons["checkpointing"] = fit.why
    estimate = estimate_seconds(work, fit, from_layer)
    name = f"{machine.name} {base.digest[:12]} {recipe.quantise or ''}".strip()
    peak_bytes = fit.peak_bytes + (num_shards - 1) * 16 * num_parameters
    correction = correction_of_seconds(name, UNKNOWN_SECONDS)
    seconds = _range(estimate.seconds, correction)
    return TrainingPlan(
        method=recipe.method,
        lora=lora,
        optimizer=optimizer,
        preference=PreferencePlan(reference=recipe.preference.reference, beta=recipe.preference.beta) if recipe.preference else None,
        metric=metric_of(recipe),
        batch_size=batch_size,
        num_steps=num_steps,
        tokens_per_micro_batch=fit.tokens_per_micro_batch,
        is_checkpointed=fit.is_checkpointed,
        from_layer=from_layer,
        rank_margin=recipe.rank_margin if recipe.rank == "auto" else None,
        validate_every=recipe.validate_every or (max(1, num_steps // 10) if recipe.patience else None),
        patience=recipe.patience,
        seed=recipe.seed,
        max_len=max_len,
        dtype=str(base.dtype).removeprefix("torch."),
        report=report,
        num_shards=num_shards,
        num_parameters=num_parameters,
        adapter_bytes=4 * num_parameters,
        trainable_share=num_parameters / (base.num_parameters + num_parameters),
        resident_bytes=16 * num_parameters,
        uncorrected_bytes=peak_bytes,
        uncorrected_seconds=estimate.seconds,
        machine=name,
        memory_bytes=_range(peak_bytes, correction_of_bytes(name, UNKNOWN_BYTES)),
        seconds=seconds,
        price=_price(recipe, seconds),
        num_computed_tokens=estimate.num_computed_tokens,
        serving=servable(lora, config.model_type) if num_shards == 1 else servable_together(num_shards),
        reasons=reasons | {"seconds": correction.why},
    )


def _lora(recipe: Recipe, base: Base, num_rows: int, reasons: dict[str, str]) -> LoRAConfig:
    preset = PRESETS[recipe.preset]
    targets = targets_of(recipe.targets, choose_layers(recipe.layers, base.num_layers), base.layers)
    reasons["targets"] = "given in the recipe" if recipe.targets else "all linear layers: attention alone learns less at the same size"
    reasons["layers"] = "given in the recipe" if recipe.layers is not None else "all: what upper layers alone learn is measured less"
    floor = 16 if num_rows < 5_000 else 32 if num_rows < 50_000 else 64
    why = preset.why if preset.rank >= floor else f"{num_rows} rows are more than rank {preset.rank} should hold"
    given = None if recipe.rank == "auto" else recipe.rank
    narrowest = min(min(base.layers[name].in_features, base.layers[name].out_features) for name in targets)
    chosen = (AUTO_RANK, "the highest to begin with, cut down after training") if recipe.rank == "auto" else (max(preset.rank, floor), why)
    rank = choose(reasons, "rank", given, min(chosen[0], narrowest), chosen[1])
    ranks = ranks_by_name(recipe.rank_pattern, targets)
    refuse_impossible_ranks({name: ranks.get(name, rank) for name in targets}, base.layers)
    return LoRAConfig(
        rank=rank,
        alpha=choose(reasons, "alpha", recipe.alpha, ALPHA, "fixed: the best learning rate then hardly depends on the rank"),
        target_modules=targets,
        ranks=ranks,
        kind="dora" if recipe.method == "dora" else "pissa" if recipe.method == "pissa" else "lora",
        rank_stabilised=recipe.method == "rslora",
        dropout=recipe.dropout,
    )


def _refuse_contradictions(recipe: Recipe) -> None:
    """What each makes sense alone and not together."""
    if recipe.method in COMPARISON_METHODS:
        raise ConfigError(f"method {recipe.method!r} is there for comparison and is not planned: `lorimer train` runs it")
    if recipe.privacy and (problems := contradictions(recipe)):
        raise ConfigError(f"`privacy: sharded` does not go with the rest of the recipe: {'; '.join(problems)}")
    if recipe.dropout and (recipe.method == "dora" or recipe.preference):
        raise ConfigError(f"`dropout` does not go with {'`preference`' if recipe.preference else 'DoRA'} here: leave it out")
    if recipe.rank == "auto" and (recipe.rank_pattern or recipe.method == "dora" or recipe.preference):
        other = "`rank_pattern`" if recipe.rank_pattern else "DoRA" if recipe.method == "dora" else "`preference`"
        raise ConfigError(f"`rank: auto` does not go with {other}: give a rank")
    if recipe.preference and recipe.preference.reference != "base":
        asked = [key for key in SHAPE_KEYS if key in recipe.model_fields_set]
        if asked:
            raise ConfigError(
                f"`{'`, `'.join(asked)}` of an adapter that goes on from {recipe.preference.reference!r} are that adapter's own: leave "
                f"{'it' if len(asked) == 1 else 'them'} out"
            )
    if recipe.patience and recipe.preference:
        raise ConfigError("`patience` looks at the loss of answers, which preferences do not lower: leave it out")


def _num_parameters(lora: LoRAConfig, base: Base) -> int:
    layers = [(name, base.layers[name]) for name in lora.target_modules]
    num = sum(lora.rank_of(name) * (layer.in_features + layer.out_features) for name, layer in layers)
    return num + (sum(layer.out_features for _, layer in layers) if lora.kind == "dora" else 0)


def choose(reasons: dict[str, str], name: str, given: Any, chosen: Any, why: str) -> Any:
    """The recipe's value, else ours with its reason."""
    if given is not None:
        reasons[name] = "given in the recipe"
        return given
    reasons[name] = why
    return chosen


class Steps(NamedTuple):
    """How a run goes through its rows."""

    batch_size: int
    num_steps: int


def steps_for(recipe: Recipe, num_rows: int, reasons: dict[str, str]) -> Steps:
    """The recipe's, or as many as rows are to be seen."""
    batch_size = min(choose(reasons, "batch_size", recipe.batch_size, 16, "adapters learn better from small batches"), num_rows)
    epochs = choose(reasons, "epochs", recipe.epochs, *_epochs(num_rows)) if recipe.steps is None else 0.0
    return Steps(batch_size, recipe.steps or max(1, round(epochs * num_rows / batch_size)))


def max_len_for(recipe: Recipe, base_name: str, longest: int) -> int:
    """The recipe's, or what the base reads, within reason.

    Raises:
        ConfigError: if the recipe asks for more than the base reads.
    """
    if recipe.max_len is not None and recipe.max_len > longest:
        raise ConfigError(f"`max_len` is {recipe.max_len}, but base {base_name!r} reads at most {longest} tokens")
    return recipe.max_len or min(longest, 2048)


def learning_rate_for(recipe: Recipe, num_parameters: int) -> tuple[float, str]:
    """For adapters on a base of so many parameters, and why."""
    preset = PRESETS[recipe.preset]
    if recipe.preference is not None:
        return 2e-5, "preferences are learned with small steps: the field's rate for adapters"
    if recipe.method == "pissa":
        return 2e-4, "an adapter that begins with the base's principal parts needs a lower rate (arXiv:2602.04998)"
    if num_parameters < SMALL_BASE:
        rate, why = 1e-3, "the best rate for adapters on bases below 2B parameters, ten times full fine-tuning's"
    else:
        rate, why = 3e-4, "the best rate for adapters on bases of 2B parameters and more, ten times full fine-tuning's"
    return rate * preset.rate_factor, why if preset.rate_factor == 1 else f"{why}; {preset.why_rate}"


def _epochs(num_rows: int) -> tuple[float, str]:
    epochs = 3.0 if num_rows < 1_000 else 2.0 if num_rows < 10_000 else 1.0
    return epochs, f"{num_rows} rows: few rows are seen more often"


def _range(estimate: float, correction: Correction) -> Range:
    return Range(low=estimate * correction.low, middle=estimate * correction.middle, high=estimate * correction.high)


def _price(recipe: Recipe, seconds: Range) -> Range | None:
    if recipe.price_per_hour is None:
        return None
    per_second = recipe.price_per_hour / 3600
    return Range(low=seconds.low * per_second, middle=seconds.middle * per_second, high=seconds.high * per_second)


def describe(plan: TrainingPlan) -> Mapping[str, str]:
    """The plan in lines a person reads."""
    minutes, memory = plan.seconds, plan.memory_bytes
    why_epochs = plan.reasons.get("epochs", "steps given in the recipe")
    saved = 1 - plan.num_computed_tokens / max(1, plan.num_steps * plan.batch_size * plan.report.num_tokens / plan.num_rows)
    lines = {
        **describe_report(plan.report),
        "method": plan.method,
        "steps": f"{plan.num_steps} of {plan.batch_size} rows, {plan.num_epochs:.1f} epochs ({why_epochs})",
        "rank": f"{plan.lora.rank} ({plan.reasons['rank']})",
        "alpha": f"{plan.lora.alpha:g} ({plan.reasons['alpha']})",
        "learning rate": f"{plan.optimizer.learning_rate:g} ({plan.reasons['learning_rate']})",
        "layers": f"{len(plan.lora.target_modules)} linear layers ({plan.reasons['targets']})",
        "adapter": f"{plan.num_parameters} parameters, {plan.trainable_share:.2%} of all, {plan.adapter_bytes / 1e6:.1f} MB",
        "memory": f"{memory.middle / 1e9:.1f} GB ({memory.low / 1e9:.1f} to {memory.high / 1e9:.1f})",
        "time": f"{minutes.middle / 60:.1f} minutes ({minutes.low / 60:.1f} to {minutes.high / 60:.1f}); {plan.reasons['seconds']}",
        "scored by": plan.metric,
    }
    if plan.num_shards > 1:
        together, again = plan.num_shards * plan.adapter_bytes / 1e6, minutes.middle / 60 / plan.num_shards
        lines["shards"] = (
            f"{plan.num_shards} adapters of about {plan.num_rows // plan.num_shards} rows each, {together:.1f} MB together, that answer as "
            f"one; to erase a person's rows trains one of them again, about {again:.1f} minutes"
        )
    if saved > 0.01:
        lines["shared prefixes"] = f"save {saved:.0%} of the tokens"
    if plan.is_checkpointed:
        lines["checkpointing"] = plan.reasons["checkpointing"]
    if plan.from_layer:
        lines["frozen layers"] = f"the {plan.from_layer} lowest are run once and their states kept"
    if plan.price is not None:
        lines["price"] = f"{plan.price.middle:.2f} ({plan.price.low:.2f} to {plan.price.high:.2f})"
    for verdict in plan.serving:
        lines[f"served by {verdict.engine}"] = {True: "yes", False: "no", None: "not known"}[verdict.ok] + f": {verdict.reason}"
    return lines
