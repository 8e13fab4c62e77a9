"""One renderer: spans, masks, stop ids, and the same ids in training as in serving."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import byte_tokenizer
from lorimer.data.example import Example, Message
from lorimer.errors import DataError
from lorimer.model.chat import Renderer
from lorimer.model.spelling import MARKS
from lorimer.model.turns import ToolCall, Turn

CHATML = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
REWRITING = (  # shows only the last answer whole, as templates that drop old reasoning do
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}A:...<end_of_turn>\n{% else %}"
    "{{ 'A:' if m.role == 'assistant' else 'U:' }}{{ m.content }}<end_of_turn>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}" + CHATML


def renderer(template: str | None = None, *, with_turns: bool = True) -> Renderer:
    tokenizer = byte_tokenizer.__wrapped__(with_turns=with_turns)
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def talk(*contents: str, system: str | None = None) -> list[Message]:
    first = [Message(role="system", content=system)] if system else []
    return first + [Message(role="assistant" if i % 2 else "user", content=c) for i, c in enumerate(contents)]


def learned(r: Renderer, messages: list[Message]) -> str:
    rendered = r.render(messages)
    return r.tokenizer.decode([i for i, s in zip(rendered.ids, rendered.supervised, strict=True) if s])


def shown(r: Renderer, ids: tuple[int, ...]) -> str:
    return r.tokenizer.decode(list(ids))


def test_gemma_turns_without_a_template() -> None:
    r = renderer()
    assert r.template_origin == "turns"
    ids = r.render_prompt(talk("Hi", system="Be brief."))
    assert shown(r, ids) == "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert learned(r, talk("Hi", "Yes", system="Be brief.")) == "Yes<end_of_turn>"


def test_plain_words_without_template_and_markers() -> None:
    r = renderer(with_turns=False)
    assert r.template_origin == "plain"
    assert shown(r, r.render_prompt(talk("Hi", system="Be brief."))) == "<bos>Be brief.\n\n### User\nHi\n\n### Assistant\n"
    assert learned(r, talk("Hi", "Yes")) == "Yes<eos>"


@pytest.mark.parametrize("template", [None, CHATML, NO_SYSTEM])
def test_every_answer_is_learned_with_its_end_of_turn(template: str | None) -> None:
    r = renderer(template)
    assert learned(r, talk("Q1", "A1", "Q2", "A2", system="S")) == "A1<end_of_turn>A2<end_of_turn>"


def test_base_template_is_used() -> None:
    r = renderer(CHATML)
    assert r.template_origin == "base"
    assert shown(r, r.render_prompt(talk("Hi"))) == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>assistant\n"


def test_template_without_system_role_gets_it_in_the_first_user_turn() -> None:
    r = renderer(NO_SYSTEM)
    assert "<start_of_turn>user\nS\n\nHi<end_of_turn>" in shown(r, r.render_prompt(talk("Hi", system="S")))


def test_template_that_rewrites_earlier_answers_supervises_only_the_last() -> None:
    assert learned(renderer(REWRITING), talk("Q1", "A1", "Q2", "A2")) == "A2<end_of_turn>"


@pytest.mark.parametrize("template", [None, CHATML, REWRITING])
def test_prompt_ids_are_the_beginning_of_the_trained_ids(template: str | None) -> None:
    r = renderer(template)
    for messages in (talk("Q1", "A1"), talk("Q1", "A1", "Q2", "A2"), talk("a", "b", "c", "d", "e", "f", system="S")):
        prompt, trained = r.render_prompt(messages[:-1]), r.render(messages)
        assert trained.ids[: len(prompt)] == prompt
        assert all(trained.supervised[len(prompt) :])


@given(st.lists(st.text(max_size=30), min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_any_text_keeps_prompt_and_answer_apart(contents: list[str]) -> None:
    r = renderer()
    messages = talk(*contents)
    rendered, prompt = r.render(messages), r.render_prompt(messages[:-1])
    assert rendered.ids[: len(prompt)] == prompt
    assert rendered.supervised[-1]
    assert rendered.ids[-1] in r.stop_ids


def test_bos_stands_once() -> None:
    for template in (None, CHATML, "{{ bos_token }}" + CHATML):
        r = renderer(template)
        assert list(r.render(talk("Q", "A")).ids).count(r.tokenizer.bos_token_id) == 1


def test_plain_text_is_learned_but_for_its_bos() -> None:
    r = renderer()
    rendered = r.render_example(Example(text="abc", source="x:1"))
    assert shown(r, rendered.ids) == "<bos>abc<eos>"
    assert rendered.supervised == (False, True, True, True, True)


def test_stop_ids_are_end_of_turn_and_end_of_sequence() -> None:
    r = renderer()
    assert r.stop_ids == {r.tokenizer.convert_tokens_to_ids("<end_of_turn>"), r.tokenizer.eos_token_id}


def test_template_that_refuses_is_named() -> None:
    r = renderer(CHATML)
    r.template = "{{ raise_exception('turns must alternate') }}"
    with pytest.raises(DataError, match="turns must alternate"):
        r.render(talk("Q", "A"))


def test_greeting_before_the_first_question_is_prompt_not_answer() -> None:
    r = renderer()
    greeted = [Message(role="assistant", content="Hello!"), *talk("Q", "A")]
    assert learned(r, greeted) == "A<end_of_turn>"
    assert r.render(greeted).ids[: len(r.render_prompt(greeted[:-1]))] == r.render_prompt(greeted[:-1])


def test_answer_that_nothing_asks_for_is_refused() -> None:
    with pytest.raises(DataError, match="begins with its answer"):
        renderer().render([Message(role="assistant", content="A")])


SPELLED = ["<eos>", "<end_of_turn>", "a<start_of_turn>model\nb", "<<bos>>", "<eo<eos>s>", "<bos", "<pad>" * 3, "x < y", "\ufdd0<eos>"]


@pytest.mark.parametrize("template", [None, CHATML, REWRITING, NO_SYSTEM])
@pytest.mark.parametrize("text", SPELLED)
def test_special_tokens_come_from_the_template_alone(template: str | None, text: str) -> None:
    r = renderer(template)
    specials = set(r.tokenizer.all_special_ids) | set(r.stop_ids)
    messages, harmless = talk(text, f"a{text}", text, f"{text}b", system=text), talk("x", "ax", "x", "xb", system="x")
    found, wanted = r.render(messages).ids, r.render(harmless).ids
    assert [i for i in found if i in specials] == [i for i in wanted if i in specials]
    assert r.decode(r.tokenise_prompt(text)) == text
    assert text in r.decode(r.render_prompt(talk(text)))
    assert r.render(messages).ids[: len(r.render_prompt(messages[:-1]))] == r.render_prompt(messages[:-1])


@given(st.lists(st.text("<bos>/ \n", max_size=12) | st.sampled_from(SPELLED), min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_any_spelling_adds_no_special_token(contents: list[str]) -> None:
    r, messages = renderer(), talk(*contents)
    num_wanted = len([i for i in r.render(talk(*["x"] * len(contents))).ids if r.is_special(i)])
    assert len([i for i in r.render(messages).ids if r.is_special(i)]) == num_wanted


def test_special_tokens_of_plain_text_to_learn_from_are_meant() -> None:
    r = renderer()
    assert list(r.render_text("a<eos>b").ids).count(r.tokenizer.eos_token_id) == 2


@given(st.text(max_size=40))
def test_ids_of_ordinary_text_are_the_tokenizers(text: str) -> None:
    r = renderer()
    if not r.spelling.places(text):
        assert list(r.tokenise_prompt(text)) == r.tokenizer(text).input_ids


def test_text_of_every_noncharacter_is_refused_only_where_it_matters() -> None:
    r, every = renderer(), "".join(MARKS)
    assert r.decode(r.tokenise_prompt(every)) == every
    with pytest.raises(DataError, match="noncharacters"):
        r.tokenise_prompt(f"{every}<eos>")


TOOLED = (
    "{% if tools %}<start_of_turn>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<end_of_turn>\n{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    '[{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}]{% endfor %}<end_of_turn>\n{% endfor %}'
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)


def test_tools_calls_and_results_are_content_too() -> None:
    r, bad = renderer(TOOLED), "<end_of_turn>"
    tool = {"type": "function", "function": {"name": "look", "description": bad, "parameters": {"type": "object", bad: [bad]}}}
    call = ToolCall(id="1", name="look", arguments={"at": bad, bad: {"deep": [bad]}})
    turns = [
        Turn(role="user", content="a"),
        Turn(role="assistant", content="", tool_calls=(call,)),
        Turn(role="tool", content=bad, tool_call_id="1", name="look"),
    ]
    ids = r.render_prompt(turns, [tool])
    assert [i for i in ids if r.is_special(i)].count(r.tokenizer.convert_tokens_to_ids(bad)) == 4
    assert r.decode(ids).count(bad) == 7
