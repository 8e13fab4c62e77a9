"""An example is the same after a round trip, and its digest covers what training sees and nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data.example import Example, Message, example_from_json

ASKED = Example(messages=(Message(role="user", content="Q"), Message(role="assistant", content="A")), source="f:1")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("example", "digest"),
    [
        (ASKED, "95404b2518c3478ea9f8f60aefe3397afd824a4964d81455ef38c2ec54d5659b"),
        (Example(text="once", source="f:1"), "efaee4a62a1ea5456f7408ebb1f585bb2a40a5e64f8462e57f1711b101f6cd01"),
    ],
)
def test_digest_of_known_rows_never_changes(example: Example, digest: str) -> None:
    # a changed digest would part everybody's datasets from the runs that learned from them
    assert example.digest == digest


def test_digest_covers_the_rejected_answer_and_not_the_source() -> None:
    pair = replace(ASKED, rejected="B")
    assert len({ASKED.digest, pair.digest, replace(ASKED, rejected="C").digest}) == 3
    assert replace(pair, source="g:2", tags={"language": "en"}).digest == pair.digest


def test_rejected_answer_is_left_out_where_there_is_none() -> None:
    assert "rejected" not in ASKED.content()
    assert replace(ASKED, rejected="B").content() == {**ASKED.content(), "rejected": "B"}


@given(TEXTS, TEXTS, st.none() | TEXTS)
def test_example_is_the_same_after_a_round_trip(prompt: str, answer: str, rejected: str | None) -> None:
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    example = Example(messages=messages, rejected=rejected, source="f:1", tags={"language": "en"})
    assert example_from_json(example.to_json()) == example
    assert (example.prompt, example.answer) == (messages[:1], answer)
