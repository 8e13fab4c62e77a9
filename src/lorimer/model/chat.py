"""Messages to token ids and a loss mask: one renderer for training, evaluation and serving, so that what is served is what was trained.

The base's own chat template is used when it has one, else one of ours (templates below): with the turn markers of Gemma where the
vocabulary has them, else in plain words. A conversation is cut into spans, prompt and answer by turns, by rendering it up to each
turn; every span is tokenised alone, in training as in serving, so the ids an adapter is asked with are the ids it learned from.
The loss mask is the answers' spans up to and including the end-of-turn token. No string is ever searched for.

Special tokens come from the template alone. Where content spells one (`<end_of_turn>`), the text is cut inside it before it is tokenised,
so that it stays the letters it is, in training as in serving; all other content is tokenised as if nobody had looked.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jinja2

from lorimer.data.example import Example, Message
from lorimer.errors import DataError
from lorimer.model.spelling import Spelling
from lorimer.model.turns import Turn, as_turns, strings_in, with_strings, with_system_folded
from lorimer.storage import digest_of

TURN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{% set ns.system = message.content %}"
    "{% elif message.role == 'user' %}<start_of_turn>user\n{% if ns.system %}{{ ns.system }}\n\n{% set ns.system = '' %}{% endif %}"
    "{{ message.content }}<end_of_turn>\n{% else %}<start_of_turn>model\n{{ message.content }}<end_of_turn>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
).replace("{{ bos_token }}", "{{ bos_token }}{% set ns = namespace(system='') %}", 1)
"""For bases without a template whose vocabulary has Gemma's turn markers; the system message stands before the first user turn."""

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n{% elif message.role == 'user' %}### User\n{{ message.content }}\n\n"
    "{% else %}### Assistant\n{{ message.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant\n{% endif %}"
)
"""For bases without a template and without turn markers."""

TURN_MARKERS = ("<start_of_turn>", "<end_of_turn>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A row as the model sees it."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    """True where the token is to be learned."""

    @property
    def num_supervised(self) -> int:
        """Tokens that carry loss."""
        return sum(self.supervised)


class Span(NamedTuple):
    """A piece of a rendered conversation."""

    text: str
    is_answer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A conversation as the template is to show it: what spells a special token is marked."""

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, Any]] = ()
    """What may be called: JSON schemas of functions."""
    mark: str = ""
    """Where text is to be cut; empty if it need not be."""

    def upto(self, num_turns: int) -> "Talk":
        """Its beginning."""
        return replace(self, turns=self.turns[:num_turns])


class Renderer:
    """A tokenizer and a chat template, and nothing else."""

    def __init__(self, tokenizer: Any, *, end_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.template, self.template_origin = _choose_template(tokenizer)
        self.template_digest = digest_of({"template": self.template, "bos": tokenizer.bos_token, "eos": tokenizer.eos_token})
        self._special_ids = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._special_ids |= {tokenizer.convert_tokens_to_ids(t) for t in TURN_MARKERS if t in tokenizer.get_vocab()}
        self.spelling = Spelling(tokenizer, self._special_ids)
        self._adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        self._takes_system = self._template_takes_system()
        self.stop_ids = self._stop_ids(set(end_ids))

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A conversation that ends with an answer, as ids and loss mask.

        Raises:
            DataError: if the template refuses the conversation.
        """
        talk = self._marked(messages)
        ids: list[int] = []
        supervised: list[bool] = []
        for span in self._spans(talk):
            span_ids = self._tokenise_span(span, talk.mark, is_first=not ids)
            num_learned = self._num_learned(span_ids) if span.is_answer else 0
            ids += span_ids
            supervised += [True] * num_learned + [False] * (len(span_ids) - num_learned)
        end = len(supervised) - supervised[::-1].index(True)  # what follows the last learned token teaches nothing
        return Rendered(ids=tuple(ids[:end]), supervised=tuple(supervised[:end]))

    def render_prompt(self, messages: Sequence[Message] | Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """A conversation that waits for its next answer, as ids; with what the answer may call, where the template shows tools.

        Raises:
            DataError: if the template refuses the conversation.
        """
        talk = self._marked(messages, tools)
        waiting = replace(talk, turns=[*talk.turns, Turn(role="assistant", content="")])
        ids: list[int] = []
        for span in self._spans(waiting)[:-1]:
            ids += self._tokenise_span(span, talk.mark, is_first=not ids)
        return tuple(ids)

    def render_text(self, text: str) -> Rendered:
        """Plain text, all of it learned, closed by the end token. Special tokens that it spells are meant, as between documents."""
        ids = self._tokenise(text, "", is_first=True)
        has_bos = ids[:1] == [self.tokenizer.bos_token_id]
        ids = [*ids, self.tokenizer.eos_token_id]
        return Rendered(ids=tuple(ids), supervised=tuple(not (has_bos and i == 0) for i in range(len(ids))))

    def render_example(self, example: Example) -> Rendered:
        """A dataset's row."""
        return self.render(example.messages) if example.text is None else self.render_text(example.text)

    def tokenise_prompt(self, text: str) -> tuple[int, ...]:
        """Plain text to be continued, as the completions endpoint takes it: a client's, so that special tokens it spells are letters."""
        mark = self.spelling.mark_for([text])
        return tuple(self._tokenise(self.spelling.marked(text, mark), mark, is_first=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Ids back to text, markers left out."""
        return str(self.tokenizer.decode([i for i in ids if i not in self._special_ids], clean_up_tokenization_spaces=False))

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a marker, and no text."""
        return token_id in self._special_ids

    def show(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = (), *, add_generation_prompt: bool = False) -> str:
        """A conversation as the template's text.

        Raises:
            DataError: if the template refuses it.
        """
        return self._apply(Talk(turns=turns, tools=tools), add_generation_prompt=add_generation_prompt)

    def _marked(self, messages: Sequence[Message] | Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> Talk:
        """A conversation with marks wherever its content spells a special token."""
        turns = as_turns(messages) if self._takes_system else with_system_folded(as_turns(messages))
        mark = self.spelling.mark_for([text for turn in turns for text in turn.texts] + list(strings_in(list(tools))))
        if not mark:
            return Talk(turns=turns, tools=tools)
        marked = [turn.with_texts(lambda text: self.spelling.marked(text, mark)) for turn in turns]
        return Talk(turns=marked, tools=with_strings(list(tools), lambda text: self.spelling.marked(text, mark)), mark=mark)

    def _spans(self, talk: Talk) -> list[Span]:
        """Prompt, answer, prompt, answer...; earlier answers fall into the prompt where the template rewrites them later."""
        last = len(talk.turns) - 1
        if last < 1:
            raise DataError("the conversation begins with its answer: nothing asks for it; put a user turn before it")
        before_last = self._apply(talk.upto(last), add_generation_prompt=True)
        spans: list[Span] = []
        done = ""
        for index in (i for i, turn in enumerate(talk.turns[:last]) if i and turn.role == "assistant"):
            before = self._apply(talk.upto(index), add_generation_prompt=True)
            upto = self._apply(talk.upto(index + 1))
            answer = upto[len(before) :]
            if not (before.startswith(done) and upto.startswith(before) and before_last.startswith(upto)):
                spans, done = [], ""  # the template shows this turn otherwise once others follow: only the last answer is as it was
                break
            spans += [Span(before[len(done) :], False), Span(answer, True)]
            done = upto
        whole = self._apply(talk)
        if not whole.startswith(before_last):
            raise DataError(
                "the base's chat template renders an answer differently from the prompt it generates after: it cannot be trained on"
            )
        return [*spans, Span(before_last[len(done) :], False), Span(whole[len(before_last) :], True)]

    def _apply(self, talk: Talk, *, add_generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                [turn.to_template() for turn in talk.turns],
                tools=[dict(tool) for tool in talk.tools] or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, ValueError, TypeError) as exc:  # the last: from filters over what is not there
            raise DataError(f"the base's chat template refuses the conversation: {exc}") from exc
        return str(text)

    def _tokenise(self, text: str, mark: str, *, is_first: bool) -> list[int]:
        ids = list(self._ids_of_parts(text.split(mark)) if mark else self.tokenizer(text, add_special_tokens=False).input_ids)
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if is_first and self._adds_bos and ids[:1] != [bos] else ids

    def _ids_of_parts(self, parts: list[str]) -> Iterable[int]:
        """Each tokenised alone; there may be hundreds of thousands, of a text that is nothing but special tokens."""
        for part in self.tokenizer.backend_tokenizer.encode_batch(parts, add_special_tokens=False):
            yield from part.ids

    def _tokenise_span(self, span: Span, mark: str, *, is_first: bool) -> list[int]:
        if not span.is_answer:
            return self._tokenise(span.text, mark, is_first=is_first)
        ids = self._tokenise(span.text, mark, is_first=False)
        return ids if self._num_learned(ids, default=0) else [*ids, self.tokenizer.eos_token_id]

    def _num_learned(self, answer_ids: Sequence[int], default: int | None = None) -> int:
        """Up to and including the end-of-turn token, the last special one; what follows it belongs to the template."""
        last = next((i for i in range(len(answer_ids) - 1, -1, -1) if answer_ids[i] in self._special_ids), None)
        if last is None:
            return len(answer_ids) if default is None else default
        return last + 1

    def _template_takes_system(self) -> bool:
        """Some templates refuse a system message; then it is put before the first user turn."""
        try:
            text = self.show([Turn(role="system", content="sys-7f"), Turn(role="user", content="a")])
        except DataError:
            return False
        return "sys-7f" in text

    def _stop_ids(self, end_ids: set[int]) -> frozenset[int]:
        probe = self.render([Message(role="user", content="a"), Message(role="assistant", content="b")])
        end_of_turn = [i for i, learned in zip(probe.ids, probe.supervised, strict=True) if learned][-1]
        eos = self.tokenizer.eos_token_id
        return frozenset(end_ids | {end_of_turn} | ({eos} if eos is not None else set()))


def _choose_template(tokenizer: Any) -> tuple[str, str]:
    """The template and where it is from: the base, our turns, or our plain words."""
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template, "base"
    vocabulary = tokenizer.get_vocab()
    return (TURN_TEMPLATE, "turns") if all(marker in vocabulary for marker in TURN_MARKERS) else (PLAIN_TEMPLATE, "plain")
