"""Shapes are found by name, folder and file; what is none is refused with what there is."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes import ARCHITECTURES, CONFIGS
from lorimer.errors import ConfigError, NotFoundError
from lorimer.model.shapes import SHIPPED_SHAPES, find_shape


@pytest.mark.parametrize(("name", "num_layers", "hidden_len"), [("llama-3-8b", 32, 4096), ("llama-3-70b", 80, 8192)])
def test_shipped_shapes_have_the_published_sizes(name: str, num_layers: int, hidden_len: int) -> None:
    found = find_shape(name)
    assert (found.model_type, found.num_hidden_layers, found.hidden_size, found.vocab_size) == ("llama", num_layers, hidden_len, 128256)
    assert (found.num_key_value_heads, found.head_dim, found.max_position_embeddings) == (8, 128, 8192)
    assert found.rope_parameters["rope_theta"] == 500000.0


def test_every_shipped_shape_reads() -> None:
    assert SHIPPED_SHAPES == ("llama-3-70b", "llama-3-8b")
    assert all(find_shape(name) for name in SHIPPED_SHAPES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_configurations_come_back(architecture: str, tmp_path: Path) -> None:
    CONFIGS[architecture].save_pretrained(tmp_path)
    for found in (find_shape(str(tmp_path)), find_shape(str(tmp_path / "config.json"))):
        assert type(found) is type(CONFIGS[architecture])
        assert found.hidden_size == CONFIGS[architecture].hidden_size
        assert getattr(found, "layer_types", None) == getattr(CONFIGS[architecture], "layer_types", None)


def test_text_part_of_a_model_that_also_sees_is_taken(tmp_path: Path) -> None:
    value = {"model_type": "gemma3", "text_config": {**CONFIGS["gemma3"].to_dict()}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(value))
    assert find_shape(str(tmp_path)).model_type == "gemma3_text"


def test_unknown_names_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'llama-3-8b'"):
        find_shape("llama3-8b")
    with pytest.raises(NotFoundError, match="there are llama-3-70b, llama-3-8b; or give a folder"):
        find_shape("qwen")
    with pytest.raises(NotFoundError, match=r"has no config\.json"):
        find_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ([1], "holds list, not a base's configuration"),
        ({}, "model_type None"),
        ({"model_type": "llamas"}, "model_type 'llamas', which this version of transformers does not know"),
        ({"model_type": "t5"}, "is no causal language model"),
        ({"model_type": "llama", "num_hidden_layers": "many"}, "is not a valid 'llama' configuration"),
    ],
)
def test_files_that_are_no_shape_are_refused(value: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(ConfigError, match=problem):
        find_shape(str(path))
