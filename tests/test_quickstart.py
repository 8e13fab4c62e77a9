"""The quick start on the real base; behind `make test-quality`, since it takes minutes."""

import json
import os
from pathlib import Path

import pytest

from lorimer.cli.main import run
from lorimer.data.reading import read_rows

SHIPPED = Path(__file__).parents[1] / "src" / "lorimer" / "data" / "helpdesk" / "tickets.jsonl"


def test_shipped_tickets_are_what_their_readme_says() -> None:
    result = read_rows(SHIPPED, None, None)
    assert (len(result.examples), result.problems) == (1590, ())
    languages = [example.tags["language"] for example in result.examples]
    assert {language: languages.count(language) for language in set(languages)} == {"en": 1014, "de": 144, "fr": 144, "es": 144, "it": 144}
    for example in result.examples:
        answer = json.loads(example.answer)
        assert list(answer) == ["language", "product", "queue", "priority"]
        assert answer["language"] == example.tags["language"]
        assert answer["product"] in {"brewbird", "glowfox", "dustmole", "heatwren", "bellowl", "none"}
        assert answer["queue"] in {"billing", "delivery", "returns", "technical", "account", "sales"}
        assert answer["priority"] in {"high", "normal", "low"}


@pytest.mark.real_base
def test_quickstart_beats_its_base(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("LORIMER_HOME", os.environ.get("LORIMER_QUALITY_HOME", str(home)))
    torch.set_num_threads(os.cpu_count() or 1)
    assert run(["quickstart", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["base_exact"] < 0.1
    assert summary["adapter_exact"] >= 0.9
    assert summary["trainable_share"] < 0.02
