"""From a request to the sequences that answer it: prompts as ids, room for answers, grammars they are held to."""

from collections.abc import Sequence as ListOf

from lorimer.errors import UsageError
from lorimer.inference.constraint import Grammar, Grammars
from lorimer.inference.sequence import Sequence
from lorimer.model.base_text import BaseText
from lorimer.serving.generation import GenerationRequest
from lorimer.serving.protocol import ChatCompletionRequest, CompletionRequest
from lorimer.serving.refusals import ApiError
from lorimer.serving.resolve import Target
from lorimer.serving.tools import CallReader, Offer, Toolbox

Body = ChatCompletionRequest | CompletionRequest


class Prompts:
    """What may be asked of one base."""

    def __init__(self, base: BaseText) -> None:
        self.renderer, self.num_ids = base.renderer, base.num_ids
        self.toolbox = Toolbox(self.renderer)
        self.grammars = Grammars(self.renderer, base.vocabulary_len)

    def ids_of(self, body: Body) -> list[tuple[int, ...]]:
        """The ids of every prompt.

        Raises:
            DataError: if the base's template refuses the conversation.
            ApiError: if the base has no such token.
        """
        if isinstance(body, ChatCompletionRequest):
            return [self.toolbox.render(body.turns(), offer_of(body))]
        return [self.renderer.tokenise_prompt(prompt) if isinstance(prompt, str) else self._checked(prompt) for prompt in body.prompts]

    def sequences(self, body: Body, prompts: ListOf[tuple[int, ...]], target: Target, *, tenant: str, max_len: int) -> list[Sequence]:
        """`n` sequences a prompt, one after the other, each with room for its answer.

        Raises:
            ApiError: if there is no room, or the answers cannot be held to what was asked.
        """
        self._check_biases(body)
        lengths = [_answer_len(body, len(ids), max_len=max_len) for ids in prompts]
        grammar = self._grammar(body)
        return [
            Sequence(
                prompt_ids=ids,
                params=body.sampling(length, choice=choice),
                composition=target.composition,
                tenant=tenant,
                constraint=None if grammar is None else grammar.start(),
                wants_prompt_scores=isinstance(body, CompletionRequest) and body.wants_prompt_scores,
            )
            for ids, length in zip(prompts, lengths, strict=True)
            for choice in range(body.n)
        ]

    def reader_of(self, body: Body) -> CallReader | None:
        """What finds calls in an answer, where it may have some."""
        return None if offer_of(body) is None else CallReader(self.toolbox.shape)

    def echoes(self, body: Body, prompts: ListOf[tuple[int, ...]]) -> list[str]:
        """What stands before every answer: its prompt, where that is asked for."""
        if not isinstance(body, CompletionRequest) or not body.echo:
            return [""] * (len(prompts) * body.n)
        texts = [prompt if isinstance(prompt, str) else self.renderer.decode(prompt) for prompt in body.prompts]
        return [text for text in texts for _ in range(body.n)]

    def _grammar(self, body: Body) -> Grammar | None:
        """What the answers are held to, if anything."""
        offer, form = offer_of(body), body.response_format
        schema = None if form is None else form.asked_schema
        param = "tools" if offer else "response_format"
        try:
            if offer is not None:
                return self.grammars.of_lark(self.toolbox.grammar_of(offer))
            return None if schema is None else self.grammars.of_schema(schema)
        except UsageError as exc:
            message = f"`{param}`: the JSON schema cannot be used: {exc}"
            raise ApiError(400, message, param=param, code="invalid_json_schema") from exc

    def _checked(self, ids: ListOf[int]) -> tuple[int, ...]:
        """Token ids from a client, refused here if the base has no such token: one wrong id would fail a whole step."""
        if wrong := [i for i in ids if i >= self.num_ids]:
            raise ApiError(400, f"token id {wrong[0]} is not in the vocabulary of {self.num_ids}", param="prompt", code="invalid_value")
        return tuple(ids)

    def _check_biases(self, body: Body) -> None:
        """The same for biases."""
        if wrong := [i for i in body.biases if i >= self.grammars.vocabulary_len]:
            message = f"`logit_bias`: token id {wrong[0]} is not in the vocabulary of {self.grammars.vocabulary_len}"
            raise ApiError(400, message, param="logit_bias", code="invalid_value")


def offer_of(body: Body) -> Offer | None:
    """What the answer may call, if anything."""
    if not isinstance(body, ChatCompletionRequest) or not body.offered:
        return None
    return Offer(functions=body.offered, must_call=body.must_call, may_call_several=body.may_call_several)


def _answer_len(body: GenerationRequest, prompt_len: int, *, max_len: int) -> int:
    """Tokens the answer may take."""
    if prompt_len == 0:
        raise ApiError(400, "the prompt has no tokens: say something", param=body.prompt_field, code="invalid_value")
    room = max_len - prompt_len
    asked = body.num_tokens_asked
    wanted = min(room, body.default_answer_len) if asked is None else asked
    if not (0 if asked == 0 else 1) <= wanted <= room:
        raise ApiError(
            400,
            f"the prompt has {prompt_len} tokens and {max(wanted, 1)} more were asked for, but this model takes "
            f"{max_len} together: shorten the prompt or ask for fewer tokens",
            param=body.prompt_field,
            code="context_length_exceeded",
        )
    return wanted
