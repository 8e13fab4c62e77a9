"""Every rule over one row, by the name a rules file calls it: who makes it, whether it runs unasked, whether it touches a test file's rows.

The order is the order in which rules see a row. A rule's settings are its maker's parameters.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lorimer.config import Curation
from lorimer.data.boilerplate import Boilerplate
from lorimer.data.encoding import RepairEncoding
from lorimer.data.information import LengthBounds, LowInformation
from lorimer.data.language import DetectLanguage
from lorimer.data.pii_rule import protect_pii
from lorimer.data.remnants import TemplateRemnants
from lorimer.data.rules import DropTooLong, KeepLanguages, RowRule, StripWhitespace
from lorimer.data.secrets import ProtectSecrets
from lorimer.data.toxicity import Toxicity
from lorimer.errors import ConfigError


class Entry(NamedTuple):
    """One rule of the catalogue."""

    make: Callable[..., RowRule]
    about: str
    unasked: Mapping[str, Any] | None = None
    """Its settings where the rules file does not name it; None where it then does not run."""
    on_test: bool = False
    """Whether a given test file is put to it too: what repairs or hides is, what picks rows is not, as published results count them."""


# Repair first, hide last: a broken encoding hides an address, and a mask is no longer the text that other rules know. Unasked, rules repair
# what is certain, hide secrets, and report the rest: whether a short answer or a name is wanted, only people know.
ROW_RULES: Mapping[str, Entry] = {
    "encoding": Entry(RepairEncoding, "undo wrong decodings, take out control characters", {}, on_test=True),
    "strip_whitespace": Entry(StripWhitespace, "take white space off both ends of every text", {}, on_test=True),
    "keep_languages": Entry(KeepLanguages, "drop rows tagged with a language not listed", on_test=True),
    "drop_too_long": Entry(DropTooLong, "drop rows longer than any base takes in", {}),
    "length": Entry(LengthBounds, "drop or flag rows whose prompt or answer is too short or too long"),
    "template_remnants": Entry(
        TemplateRemnants, "what a template left behind: markers of turns, unfilled placeholders", {"markers": "flag"}
    ),
    "boilerplate": Entry(Boilerplate, "signatures, disclaimers and footers", {}),
    "low_information": Entry(
        LowInformation, "rows that teach nothing: empty, an echo of the prompt, the same over and over", {"action": "flag"}
    ),
    "language": Entry(DetectLanguage, "guess the language of untagged rows; with `keep`, drop rows in others"),
    "toxicity": Entry(Toxicity, "words that insult or threaten", {}),
    "secrets": Entry(ProtectSecrets, "keys, passwords and tokens", {}, on_test=True),
    "pii": Entry(
        protect_pii, "personal data that proves itself: mask, pseudonymise, keep and report, or drop", {"default": "keep"}, on_test=True
    ),
}


class ChosenRules(NamedTuple):
    """The rules that run, in order."""

    on_rows: tuple[RowRule, ...]
    on_test: tuple[RowRule, ...]
    settings: dict[str, dict[str, Any]]
    """Of each, for the card."""


def choose_rules(curation: Curation, languages: Sequence[str] | None = None) -> ChosenRules:
    """The rules a rules file asks for, and those that run unasked; `languages` is how the command line spells `keep_languages`.

    Raises:
        ConfigError: naming every unknown rule and every wrong setting.
    """
    asked: dict[str, Any] = dict(curation.rules)
    if languages:
        if asked.get("keep_languages"):
            raise ConfigError("`keep_languages` is in the rules file and on the command line: say it once")
        asked["keep_languages"] = {"languages": list(languages)}
    problems = [_describe_unknown(name) for name in asked if name not in ROW_RULES]
    made: dict[str, RowRule] = {}
    settings: dict[str, dict[str, Any]] = {}
    for name, entry in ROW_RULES.items():
        wanted = asked.get(name, entry.unasked is not None)
        if wanted is False:
            continue
        settings[name] = {**(entry.unasked or {}), **(wanted if isinstance(wanted, Mapping) else {})}
        try:
            made[name] = _make(entry, settings[name])
        except ConfigError as exc:
            problems.append(f"rule `{name}`: {exc}")
    if problems:
        raise ConfigError(f"rules: {'; '.join(problems)}")
    return ChosenRules(tuple(made.values()), tuple(rule for name, rule in made.items() if ROW_RULES[name].on_test), settings)


def describe_rules() -> list[dict[str, Any]]:
    """Every rule, what it does, whether it runs unasked, and its settings with what they then are."""
    return [
        {
            "name": name,
            "about": entry.about,
            "by_default": entry.unasked is not None,
            "settings": {each.name: _default_of(each, entry) for each in _parameters(entry)} | _plain(entry.unasked or {}),
        }
        for name, entry in ROW_RULES.items()
    ]


def _make(entry: Entry, settings: Mapping[str, Any]) -> RowRule:
    """The rule with these settings, each checked against what its maker's parameter is.

    Raises:
        ConfigError: naming every setting that is unknown, missing or wrong.
    """
    parameters = {each.name: each for each in _parameters(entry)}
    hints = get_type_hints(vars(entry.make)["__init__"] if isinstance(entry.make, type) else entry.make)
    checked, problems = dict[str, Any](), list[str]()
    for name, value in settings.items():
        if name not in parameters:
            near = get_close_matches(name, parameters, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(parameters) or 'none'}"
            problems.append(f"unknown setting `{name}` ({hint})")
            continue
        try:
            found = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
            checked[name] = tuple(found) if isinstance(found, list) else found  # rules are values: nothing in them changes
        except ValidationError as exc:
            said = "; ".join(error["msg"][0].lower() + error["msg"][1:] for error in exc.errors())
            problems.append(f"setting `{name}`: {said}, found {value!r}")
    missing = [name for name, each in parameters.items() if each.default is inspect.Parameter.empty and name not in settings]
    problems += [f"setting `{name}` is missing" for name in missing]
    if problems:
        raise ConfigError("; ".join(problems))
    return entry.make(**checked)


def _parameters(entry: Entry) -> list[inspect.Parameter]:
    return list(inspect.signature(entry.make).parameters.values())


def _default_of(parameter: inspect.Parameter, entry: Entry) -> Any:
    if parameter.default is inspect.Parameter.empty:
        return "required"
    factories: dict[str, Any] = {each.name: each.default_factory for each in fields(entry.make)} if is_dataclass(entry.make) else {}
    made = factories.get(parameter.name, MISSING)
    return _plain(parameter.default if made is MISSING else made())


def _describe_unknown(name: str) -> str:
    near = get_close_matches(name, ROW_RULES, n=1)
    return f"no rule is called `{name}`" + (f" (did you mean `{near[0]}`?)" if near else f" (there are {', '.join(ROW_RULES)})")


def rules_yaml() -> str:
    """A rules file that says what is done anyway, each rule with its settings, to be changed."""
    lines = ["rules:"]
    for rule in describe_rules():
        lines.append(f"  # {rule['about']}")
        required = [name for name, value in rule["settings"].items() if value == "required"]
        usual = {name: value for name, value in rule["settings"].items() if value != "required"}
        setting = yaml.safe_dump(_plain(usual), default_flow_style=True, width=1_000).strip() if usual else "true"
        if rule["by_default"]:
            lines.append(f"  {rule['name']}: {setting}")
        else:
            needs = f" (needs {', '.join(required)})" if required else ""
            lines.append(f"  # {rule['name']}: {setting}{needs}")
    rest = Curation().model_dump(mode="json", exclude={"rules"})
    return "\n".join(lines) + "\n" + yaml.safe_dump(rest, sort_keys=False)


def _plain(value: Any) -> Any:
    """A setting's value as YAML and JSON spell it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
