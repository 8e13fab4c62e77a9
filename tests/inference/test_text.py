"""Tokens to text while they come: joined pieces are the whole, whatever the bytes and wherever it stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import byte_tokenizer
from lorimer.inference.text import TextStream
from lorimer.model.chat import Renderer

RENDERER = Renderer(byte_tokenizer())
BYTES = st.binary(max_size=12) | st.text("aé€😀\N{REPLACEMENT CHARACTER}", max_size=8).map(str.encode)


def ids_of(data: bytes) -> list[int]:
    """One token a byte, also where the bytes are no text."""
    vocabulary = RENDERER.tokenizer.get_vocab()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # what GPT-2's byte alphabet leaves as it is
    others = [byte for byte in range(256) if byte not in printable]
    return [vocabulary[chr(byte) if byte in printable else chr(256 + others.index(byte))] for byte in data]


def stream(data: bytes, stop: tuple[str, ...] = ()) -> list[str]:
    """The pieces of an answer that comes byte by byte."""
    text, ids = TextStream(RENDERER, stop), ids_of(data)
    return [text.push(ids[: i + 1], is_last=i + 1 == len(ids)) for i in range(len(ids))]


@given(data=BYTES)
def test_joined_pieces_are_the_whole(data: bytes) -> None:
    assert "".join(stream(data)) == RENDERER.decode(ids_of(data)) == data.decode(errors="replace")


@given(data=BYTES, stop=st.text("aé€", min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_given_out(data: bytes, stop: str) -> None:
    assert "".join(stream(data, (stop,))) == data.decode(errors="replace").split(stop)[0]


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("héj", (), ["h", "", "é", "j"]),
        ("abX", ("bX",), ["a", "", ""]),
        ("abY", ("bX",), ["a", "", "bY"]),
        ("xa€b", ("a€",), ["x", "", "", "", "", ""]),
        ("abcd", ("d", "bc"), ["a", "", "", ""]),
    ],
)
def test_pieces_come_as_soon_as_they_are_sure(text: str, stop: tuple[str, ...], pieces: list[str]) -> None:
    assert stream(text.encode(), stop) == pieces
