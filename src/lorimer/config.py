"""The home folder and the recipe: YAML read strictly, unknown keys refused, every problem named at once."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lorimer.errors import ConfigError

Preset = Literal["classification", "extraction", "instruction", "style", "domain", "chat"]
Metric = Literal["exact", "exact_json", "contains", "label"]
Method = Literal["lora", "rslora", "lora_plus", "dora", "pissa", "full", "prompt_tuning", "prefix_tuning", "bottleneck"]
COMPARISON_METHODS: tuple[Method, ...] = ("full", "prompt_tuning", "prefix_tuning", "bottleneck")
"""Trained to be compared with adapters; what they make is neither registered nor served."""
Quantisation = Literal["int8", "nf4"]
Tracker = Literal["mlflow", "tensorboard", "wandb"]
M = TypeVar("M", bound=BaseModel)
UNION_TAG = re.compile(r"constrained-|literal\[|list\[|str$|int$")  # what pydantic puts in the place of a key of several kinds
LANGUAGE_PATTERN = r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$"  # BCP 47, as far as examples are tagged with it


def home() -> Path:
    """Where everything the product keeps lives: `LORIMER_HOME`, by default `~/.lorimer`."""
    return Path(os.environ.get("LORIMER_HOME", "~/.lorimer")).expanduser().absolute()


class Strict(BaseModel):
    """Base of what is read from strangers: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnNames(Strict):
    """Which columns (CSV) or keys (JSONL) hold what, where the names are not ones Lorimer recognises."""

    prompt: str | None = None
    completion: str | None = None
    chosen: str | None = None
    """The better of two answers to the prompt; with it goes `rejected`."""
    rejected: str | None = None
    """The worse one."""
    text: str | None = None
    system: str | None = None
    language: str | None = None
    licence: str | None = None
    consent: str | None = None
    subject: str | None = None
    """Whom the row is about; kept as a random key, never as it stands."""
    group: str | None = None
    """Rows with the same value fall into the same split."""


class Shingling(Strict):
    """What near-equal means: the share of shingles two folded texts have in common (Jaccard)."""

    threshold: float = Field(0.8, ge=0.5, le=1)
    """From which share on two texts are near."""
    unit: Literal["chars", "words"] = "chars"
    """A shingle is a run of characters, or of words."""
    size: int = Field(5, ge=1, le=20)
    """How many of them."""
    min_chars: int = Field(30, ge=0)
    """Shorter texts are only compared whole: in a few words, each one counts."""


class DuplicateRules(Shingling):
    """What is done about rows that repeat others."""

    exact: Literal["drop", "report"] = "drop"
    """Rows with the same prompt and answer, up to case, white space and composition; the first is kept."""
    near: Literal["drop", "report", "off"] = "report"
    """Rows whose prompts are near; `drop` keeps the first of those with equal answers."""
    across_splits: Literal["drop", "report", "off"] = "drop"
    """Rows of train that are near to one that is held back."""


class SplitRules(Strict):
    """How rows are held back."""

    validation: float = Field(0.05, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)
    stratify: bool = False
    """Hold back the same share of every answer, where answers repeat; rows near a border may then move when others come or go."""


class Curation(Strict):
    """A rules file: what is done to rows, and how they are split. What is not named is done as by default."""

    rules: dict[str, bool | dict[str, Any]] = {}
    """Rules by name: `true`, `false`, or its settings."""
    duplicates: DuplicateRules = DuplicateRules()
    conflicts: Literal["report", "drop"] = "report"
    """Prompts with more than one answer: `drop` leaves all of their rows out."""
    labels: Literal["report", "search", "off"] = "report"
    """Where answers are labels: how evenly they are spread, near-equal prompts with different ones, and which are likely wrong. The last
    takes its time (about 1,500 rows a second) and is looked for among more than 3,000 rows only with `search`."""
    split: SplitRules = SplitRules()


class GateRecipe(Strict):
    """What counts as success, fixed before the run."""

    at_least: float | None = Field(None, ge=0, le=1)
    """The lower end of the score's 95% interval must reach this."""
    beats_base: bool = True
    """The adapter must be better than its base on the same items, beyond chance."""
    min_items: int = Field(30, ge=1)
    """With fewer test items the gate is an error, not a pass."""
    suites: list[str] = []
    """Suites whose rules must be met too: `general`, `safety`, `fidelity`, `memory`, your own (`desk@v2`), or a file of one."""
    champion: Literal["not_worse", "better"] | None = None
    """What the adapter must be on the test items beside the version that is champion, where there is one."""
    margin: float = Field(0.02, gt=0, lt=1)
    """With `champion: not_worse`: the share of right answers that may be lost."""


class PreferenceRecipe(Strict):
    """Learn from pairs of answers, the better beside the worse (DPO, Rafailov et al. 2023, arXiv:2305.18290)."""

    reference: str
    """What the adapter must not drift from: `base`, or a registered adapter version, from which training then starts."""
    beta: float = Field(0.1, gt=0)
    """How firmly it is held to the reference."""


class PrivacyRecipe(Strict):
    """How a person's rows can be taken out of what was learned (SISA, Bourtoule et al. 2021, arXiv:1912.03817)."""

    mode: Literal["sharded"]
    """Rows are dealt out by subject; each shard of them makes an adapter of its own, and all adapters together answer as one."""
    shards: int = Field(4, ge=2, le=8)  # as many as answer together
    """More of them: less is trained again when somebody's rows go, and each adapter has learned from fewer."""


class Recipe(Strict):
    """One YAML file: what to train, on what, and what counts as success."""

    base: str
    """A shipped base (`gemma3-270m`), a folder in Hugging Face format, or a hub id."""
    dataset: str
    """A curated dataset's name, or a JSONL or CSV file to curate on the way."""
    preset: Preset = "instruction"
    """The use case; sets what is not given below."""
    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """The adapter's name; by default the dataset's."""
    columns: ColumnNames | None = None
    """Only with a file: which columns hold prompt and completion, or prompt, chosen and rejected, or text."""
    system: str | None = None
    """Only with a file: the instruction put before every example."""
    languages: list[str] | None = None
    """The languages to serve (`en`, `pt-BR`): examples tagged with another are left out, one without examples is an error."""
    metric: Metric | None = None
    """How an answer is scored; by default the preset's."""
    gate: GateRecipe = GateRecipe()
    """What counts as success."""
    method: Method = "lora"
    """How the base is adapted; all but `lora`, `rslora`, `lora_plus` and `pissa` are there for comparison and are not served."""
    preference: PreferenceRecipe | None = None
    """Learn from chosen and rejected answers instead of from examples."""
    privacy: PrivacyRecipe | None = None
    """`sharded`, or `{mode: sharded, shards: 4}`: when somebody's rows are erased, one shard is trained again and not the whole."""
    canaries: int = Field(0, ge=0, le=64)
    """Made-up rows with random secrets, put among the training rows: an evaluation then says how much of such rows is remembered."""
    rank: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None = None
    """`auto`: train high, then keep the smallest adapter that is not worse by more than `rank_margin`."""
    rank_margin: float = Field(0.02, gt=0, lt=1)
    """With `rank: auto`: the share of validation answers that may be lost."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=1024)]] | None = Field(None, min_length=1)
    """Other ranks for layers whose names end so (`down_proj: 8`, `layers.0.mlp.up_proj: 4`)."""
    alpha: float | None = Field(None, gt=0)
    targets: list[str] | None = Field(None, min_length=1)
    """Endings of the names of the linear layers to adapt; by default all but the head."""
    layers: str | list[Annotated[int, Field(ge=0)]] | None = None
    """Which decoder layers to adapt: `last 6`, `first 4`, or their numbers from 0; by default all."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a layer's inputs that training hides from the adapter; rows then do not share prefixes."""
    quantise: Quantisation | None = None
    """Hold the frozen base in 8 or 4 bits: less memory, more time."""
    learning_rate: float | None = Field(None, gt=0, lt=1)
    epochs: float | None = Field(None, gt=0, le=1000)
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrides `epochs`."""
    batch_size: int | None = Field(None, ge=1, le=4096)
    """Examples per optimizer step."""
    max_len: int | None = Field(None, ge=8)
    """Longest example in tokens; longer ones are reported and left out."""
    seed: int = Field(0, ge=0)
    validate_every: int | None = Field(None, ge=1)
    """Steps between looks at the validation split; the best adapter seen there is the one that is kept."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many looks without a better validation loss; by default every step is taken."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; by default about one a minute."""
    track: list[Tracker] = []
    """Where metrics also go, beside the run's own folder."""
    price_per_hour: float | None = Field(None, gt=0)
    """What an hour of this machine costs, for the plan."""

    @field_validator("privacy", mode="before")
    @classmethod
    def _read_privacy(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; a data file is looked for beside it first.

    Raises:
        ConfigError: if it is missing, not YAML, or has unknown or wrong keys; all of them in one message.
    """
    recipe = parse_recipe(_read_yaml(path, "recipe", "write one with `lorimer init`"), str(path))
    beside = path.parent / recipe.dataset  # a recipe and its data travel together
    return recipe.model_copy(update={"dataset": str(beside.absolute())}) if beside.is_file() else recipe


def parse_recipe(value: Any, source: str) -> Recipe:
    """Check a recipe's value; `source` names it in messages.

    Raises:
        ConfigError: naming every wrong key, with the nearest known one.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"recipe {source!r} holds {type(value).__name__}, not keys: it needs at least `base:` and `dataset:`")
    try:
        return Recipe.model_validate(value)
    except ValidationError as exc:
        problems = "; ".join(_describe_all(exc.errors(), Recipe))
        raise ConfigError(f"recipe {source!r}: {problems}") from exc


def read_curation(path: Path) -> Curation:
    """Read a file of rules; an empty one asks for what is done by default.

    Raises:
        ConfigError: if it is missing, not YAML, or has unknown or wrong keys; all of them in one message.
    """
    return read_keys(path, Curation, "rules file", "`lorimer data rules` prints one to begin with")


def read_keys(path: Path, kind: type[M], what: str, advice: str) -> M:
    """Read a YAML file of keys; an empty one has none. `what` it is and what to do without it are for messages.

    Raises:
        ConfigError: if it is missing, not YAML, or has unknown or wrong keys; all of them in one message.
    """
    value = _read_yaml(path, what, advice)
    if not isinstance(value, dict | None):
        raise ConfigError(f"{what} {str(path)!r} holds {type(value).__name__}, not keys (known: {', '.join(kind.model_fields)})")
    try:
        return kind.model_validate(value or {})
    except ValidationError as exc:
        problems = "; ".join(_describe_all(exc.errors(), kind))
        raise ConfigError(f"{what} {str(path)!r}: {problems}") from exc


def _read_yaml(path: Path, what: str, advice: str) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigError(f"{what} {str(path)!r} does not exist: {advice}") from exc
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as exc:
        raise ConfigError(f"{what} {str(path)!r} cannot be read as a UTF-8 text file: {exc}") from exc
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{what} {str(path)!r}{line}: not valid YAML ({getattr(exc, 'problem', None) or exc})") from exc


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, without what was left at its default."""
    return yaml.safe_dump(recipe.model_dump(exclude_defaults=True, mode="json"), sort_keys=False, allow_unicode=True)


def _describe_all(errors: Iterable[Any], top: type[BaseModel]) -> list[str]:
    """One sentence a key: where a key may be of several kinds, each kind's complaint is an alternative."""
    sentences: dict[str, str] = {}
    for error in errors:
        key = ".".join(str(part) for part in error["loc"] if not UNION_TAG.match(str(part)))
        sentence = _describe(error, key, top)
        sentences[key] = f"{sentences[key].partition(', found ')[0]}, or {sentence.partition(': ')[2]}" if key in sentences else sentence
    return list(sentences.values())


def _describe(error: Any, key: str, top: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        known = _keys_beside(error["loc"], top)
        near = get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"unknown key `{key}`" + (f" (did you mean `{near[0]}`?)" if near else f" (known: {', '.join(known)})")
    if error["type"] == "missing":
        return f"key `{key}` is missing"
    return f"key `{key}`: {error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}"


def _keys_beside(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The known keys at the place of an unknown one, below a model."""
    for part in location[:-1]:
        if isinstance(part, int):  # the place in a list, whose kind was taken with the list
            continue
        annotation = model.model_fields[part].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
