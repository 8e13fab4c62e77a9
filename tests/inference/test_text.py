"""Tokens to text while they come: joined pieces are the whole, whatever the bytes and wherever it stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fakes import byte_tokenizer
from lorimer.inference.text import MAX_UNSETTLED, TextStream, TokenNames
from lorimer.model.chat import Renderer

RENDERER = Renderer(byte_tokenizer())


def sentencepiece(*, strips: bool) -> Renderer:
    """Whole words with their spaces, and bytes for all else, as Gemma's and Llama's tokenizers have them."""
    words = ["\u2581a", "\u2581be", "\u2581", "a", "b", "\u00e9", "\u2581\u2581", "\u20ac."]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    return Renderer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"))


SPACED = [sentencepiece(strips=False), sentencepiece(strips=True)]
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


def grow(renderer: Renderer, ids: list[int], steps: list[int], stop: tuple[str, ...] = ()) -> tuple[TextStream, list[str]]:
    """The pieces of an answer that comes some tokens at a time."""
    text, places = TextStream(renderer, stop), sorted({min(step, len(ids)) for step in steps} | {len(ids)})
    return text, [text.push(ids[:place], is_last=place == len(ids)) for place in places]


IDS = st.lists(st.integers(0, 266), max_size=MAX_UNSETTLED)


@pytest.mark.parametrize("renderer", SPACED, ids=["keeps", "strips"])
@given(ids=IDS, steps=st.lists(st.integers(1, MAX_UNSETTLED)))
def test_spaces_and_bytes_join_to_the_whole(renderer: Renderer, ids: list[int], steps: list[int]) -> None:
    assert "".join(grow(renderer, ids, steps)[1]) == renderer.decode(ids)
    assert "".join(grow(renderer, ids, list(range(len(ids))))[1]) == renderer.decode(ids)


def test_byte_run_is_text_only_when_it_has_ended() -> None:
    valid, broken = [3 + byte for byte in b"\xc3\xa9"], 3 + 0xFF
    assert grow(SPACED[0], [*valid, 262], [1, 2, 3])[1] == ["", "", "éa"]
    assert grow(SPACED[0], [*valid, broken], [1, 2, 3])[1] == ["", "", "\N{REPLACEMENT CHARACTER}" * 3]


@given(data=st.binary(min_size=3 * MAX_UNSETTLED, max_size=4 * MAX_UNSETTLED) | st.just(b"\xff" * 300) | st.just(b"\xe2" * 301))
def test_rubbish_is_decoded_a_few_tokens_at_a_time(data: bytes) -> None:
    longest, decode = 0, RENDERER.decode

    def watch(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    own = Renderer(byte_tokenizer())
    own.decode = watch  # type: ignore[method-assign,assignment]
    ids = ids_of(data)
    assert "".join(grow(own, ids, list(range(len(ids))))[1]) == data.decode(errors="replace")
    assert longest <= 3 * MAX_UNSETTLED


def test_long_answer_costs_no_more_a_token() -> None:
    lengths: list[int] = []
    own = Renderer(byte_tokenizer())
    own.decode = lambda ids: lengths.append(len(ids)) or RENDERER.decode(ids)  # type: ignore[method-assign,func-returns-value]
    grow(own, ids_of(b"abc " * 500), list(range(2000)), stop=("zz", "never"))
    assert max(lengths) <= 2


@given(data=BYTES, stop=st.text("aé€", min_size=1, max_size=3))
def test_shown_tokens_are_those_whose_text_has_begun(data: bytes, stop: str) -> None:
    text, ids = TextStream(RENDERER, (stop,)), ids_of(data)
    for place in range(1, len(ids) + 1):
        text.push(ids[:place], is_last=place == len(ids))
        assert text.num_shown <= place
        if text.is_stopped:
            break
    assert len(text.text.encode()) <= 3 * text.num_shown
    whole = RENDERER.decode(ids[: text.num_shown])
    assert whole.startswith(text.text) or text.text.startswith(whole.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert text.is_stopped or text.num_shown == len(ids)


@pytest.mark.parametrize(
    ("renderer", "token_id", "said"),
    [
        (RENDERER, ids_of(b"a")[0], b"a"),
        (RENDERER, ids_of(b" ")[0], b" "),
        (RENDERER, ids_of(b"\xe2")[0], b"\xe2"),
        (RENDERER, 1, b"<eos>"),
        (RENDERER, 263, b""),
        (SPACED[0], 3 + 0xE2, b"\xe2"),
        (SPACED[0], 259, b" a"),
        (SPACED[1], 264, "é".encode()),
        (SPACED[1], 2, b"</s>"),
    ],
)
def test_bytes_of_a_token(renderer: Renderer, token_id: int, said: bytes) -> None:
    assert TokenNames(renderer).bytes_of(token_id) == said


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
