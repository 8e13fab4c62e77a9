"""Names need a model: with one they are found, without one a sentence says what to do."""

import importlib.util

import pytest

from lorimer.data.named_entities import NamedEntities, load_analyzer
from lorimer.data.pii_rule import protect_pii
from lorimer.errors import ConfigError

HAS_PRESIDIO = importlib.util.find_spec("presidio_analyzer") is not None


@pytest.mark.skipif(HAS_PRESIDIO, reason="needs an environment without Presidio")
def test_names_without_the_extra_say_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"lorimer\[pii\]"):
        NamedEntities(model="en_core_web_sm").find("Jo")


@pytest.mark.skipif(not HAS_PRESIDIO, reason="needs lorimer[pii]")
def test_names_without_a_model_say_which_are_installed() -> None:
    with pytest.raises(ConfigError, match="not installed"):
        load_analyzer("no_such_model", "en")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_names_are_masked_with_a_model() -> None:
    spacy = pytest.importorskip("spacy")
    models = [model for model in spacy.util.get_installed_models() if model.startswith("en_")]
    if not HAS_PRESIDIO or not models:
        pytest.skip("needs lorimer[pii] and a spaCy model for English")
    assert protect_pii(model=models[0]).protect("My name is John Smith, mail jo@mail.com") == "My name is [PERSON], mail [EMAIL]"
