"""Names and addresses, found by Presidio over a spaCy model the user has; the extra `lorimer[pii]`.

A model's findings are guesses: numbers and log lines are taken for names with a score of 0.85 (presidio issues 635, 786, 1173, 1352). So
a name must begin in upper case or not be cased at all, hold no digit, and pass `min_score`; the report of precision and recall says what
is left. Nothing is downloaded: the model must be installed.
"""

import importlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lorimer.data.pii import Found
from lorimer.errors import ConfigError

KINDS = {"PERSON": "PERSON", "LOCATION": "ADDRESS"}
STREET = re.compile(r"\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedEntities:
    """A finder of names and addresses; the model is loaded at the first text, in whichever process that is."""

    model: str
    language: str = "en"
    min_score: float = 0.6
    kinds: tuple[str, ...] = field(default=("PERSON",))
    """PERSON, and ADDRESS where places count too: a model finds towns and countries, not whole postal addresses."""

    def find(self, text: str) -> list[Found]:
        """Names and places in a text.

        Raises:
            ConfigError: if the extra or the model is not installed.
        """
        entities = [entity for entity, kind in KINDS.items() if kind in self.kinds]
        results = load_analyzer(self.model, self.language).analyze(text, language=self.language, entities=entities)
        return [
            Found(KINDS[result.entity_type], result.start, result.end, text[result.start : result.end])
            for result in results
            if result.score >= self.min_score and _is_likely(text[result.start : result.end])
        ]


@lru_cache(maxsize=2)
def load_analyzer(model: str, language: str) -> Any:
    """Presidio's analyzer over an installed spaCy model.

    Raises:
        ConfigError: if either is not there.
    """
    try:
        analyzer = importlib.import_module("presidio_analyzer")
        providers = importlib.import_module("presidio_analyzer.nlp_engine")
        spacy = importlib.import_module("spacy")
    except ImportError as exc:
        raise ConfigError(
            f"names and addresses need Presidio, and {exc.name} is not installed: `pip install 'lorimer[pii]'`, or leave `model` out"
        ) from exc
    # Presidio would download an absent model, or end the process: ask before it does
    if not spacy.util.is_package(model):
        installed = ", ".join(spacy.util.get_installed_models()) or "none"
        raise ConfigError(
            f"spaCy model {model!r} is not installed (installed: {installed}): install it with pip, or name one that is; models for names "
            "are no part of Lorimer, and nothing is downloaded at run time"
        )
    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    engine = providers.NlpEngineProvider(nlp_configuration=settings).create_engine()
    return analyzer.AnalyzerEngine(nlp_engine=engine, supported_languages=[language])


def _is_likely(value: str) -> bool:
    return len(value) > 1 and not STREET.search(value) and not value[0].islower()
