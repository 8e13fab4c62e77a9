"""What the soak's clients do, and what each of them must get: the mark of the version that answered, or the error that was asked for."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soak_home import HALF_SCALE, PROMPT_END, TOPICS, WORDS, Halves, question
from soak_http import BrokenReplyError, Reply, Server, StuckError

ANSWER_LEN = 10
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PROPER_CODES = {"overloaded", "rate_limit_exceeded"}
"""Of refusals that a busy server may give at any time."""


class WrongError(Exception):
    """A reply that is not what was asked for."""


@dataclass(slots=True, kw_only=True)
class Book:
    """What is registered, and what it says: the truth that replies are held against."""

    says: dict[str, str] = field(default_factory=dict)
    """By version, as `mark07@v2`."""
    newest: dict[str, int] = field(default_factory=dict)
    """By name: the version whose registration has ended."""
    begun: dict[str, int] = field(default_factory=dict)
    """By name: the version whose registration has at least begun."""
    steady: Mapping[str, str] = field(default_factory=dict)
    """What the base answers to some questions."""

    def begin(self, name: str, says: str) -> None:
        """A version is about to be registered."""
        self.begun[name] = self.begun.get(name, 0) + 1
        self.says[f"{name}@v{self.begun[name]}"] = says

    def end(self, name: str) -> None:
        """It is registered."""
        self.newest[name] = self.begun[name]

    def versions_since(self, name: str, newest_then: int) -> list[str]:
        """What a bare name may have meant while a request was on its way."""
        return [f"{name}@v{version}" for version in range(newest_then, self.begun[name] + 1)]


@dataclass(slots=True, kw_only=True)
class Fire:
    """All that the clients share."""

    server: Server
    book: Book
    names: Sequence[str]
    """Of adapters that answer with a mark."""
    pairs: Sequence[Halves]
    composed: Sequence[str]
    """Of named compositions, which are in the book as adapters are."""
    keys: Mapping[str, str]
    """By tenant: `all`, `few` (which may use the first four names), `slow` (with limits), `brief` (small bodies), `ops` (an admin's)."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    """Of problems: `wrong`, `stuck`, `improper`."""

    def note(self, kind: str, what: str) -> None:
        """Something that must not be."""
        self.kinds[kind] += 1
        if len(self.problems) < 100:
            self.problems.append(f"{kind}: {what}")


Action = Callable[[Fire, random.Random], Awaitable[str]]


async def run_client(fire: Fire, seed: int) -> None:
    """Ask this and that until the end."""
    rng = random.Random(seed)
    actions, weights = zip(*ACTIONS.items(), strict=True)
    while not fire.stop.is_set():
        action = rng.choices(actions, weights)[0]
        name = action.__name__
        try:
            outcome = await action(fire, rng)
        except StuckError as exc:
            fire.note("stuck", f"{name}: {exc}")
        except WrongError as exc:
            fire.note("wrong", f"{name}: {exc}")
        except (BrokenReplyError, KeyError, IndexError, TypeError, ValueError, OSError) as exc:
            fire.note("improper", f"{name}: {type(exc).__name__}: {exc}")
        else:
            fire.counts[f"{name}: {outcome}"] += 1


def proper_error(reply: Reply) -> dict[str, Any]:
    """The error of a reply that is one, in OpenAI's shape.

    Raises:
        ValueError: if it is not.
    """
    error = reply.json.get("error")
    is_shaped = isinstance(error, dict) and error.keys() == {"message", "type", "param", "code"}
    if not is_shaped or not (isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)):
        raise ValueError(f"status {reply.status} with a body that is not an error: {reply.body[:300]!r}")
    if "Traceback" in error["message"] or "/adapters/" in error["message"]:
        raise ValueError(f"an error that tells what is inside: {error['message'][:300]}")
    return error


def refused(reply: Reply, *expected: tuple[int, str | None]) -> str:
    """That a reply is one of these errors, or one that a busy server may always give.

    Raises:
        ValueError: if it is not.
    """
    error = proper_error(reply)
    if (reply.status, error["code"]) in expected or (reply.status, None) in expected:
        return f"{reply.status} {error['code']}"
    if error["code"] in PROPER_CODES and reply.status in (429, 503) and "retry-after" in reply.headers:
        return f"{reply.status} {error['code']}"
    raise ValueError(f"status {reply.status}, {error['code']}, expected {expected}: {error['message'][:300]}")


def texts_of(reply: Reply, *, is_stream: bool, is_chat: bool) -> tuple[str, list[str]]:
    """Who answered, and what: the answers by index."""
    if not is_stream:
        value = reply.json
        found = sorted((one["index"], one["message"]["content"] if is_chat else one["text"]) for one in value["choices"])
        return value["model"], [text for _, text in found]
    texts: dict[int, str] = {}
    models = set()
    for event in reply.events:
        if "error" in event:
            raise ValueError(f"a stream ended with an error: {event}")
        models.add(event["model"])
        for one in event["choices"]:
            piece = one["delta"].get("content") if is_chat else one["text"]
            texts[one["index"]] = texts.get(one["index"], "") + (piece or "")
    if len(models) != 1:
        raise WrongError(f"one stream named {models}")
    return models.pop(), [texts[index] for index in sorted(texts)]


async def expect(fire: Fire, path: str, body: dict[str, Any], allowed: Callable[[], Sequence[str]], count: int, key: str = "all") -> str:
    """Ask, and see that one of the allowed versions answered, with its own mark each time."""
    reply = await fire.server.ask("POST", path, body, key=fire.keys[key])
    if reply.status != 200:
        return refused(reply)
    model, texts = texts_of(reply, is_stream=bool(body.get("stream")), is_chat=path == CHAT)
    named = allowed()
    if model not in named or reply.headers.get("x-adapter") != model:
        raise WrongError(f"{body.get('model')!r} was answered by {model!r} ({reply.headers.get('x-adapter')!r}), allowed was {named}")
    says = fire.book.says[model]
    is_right = all(text.startswith(says) for text in texts) if body.get("ignore_eos") else all(text == says for text in texts)
    if len(texts) != count or not is_right:
        raise WrongError(f"{model} says {says!r}, {count} answers were asked for, found {texts}")
    return "ok"


def some_name(fire: Fire, rng: random.Random, names: Sequence[str]) -> tuple[str, Callable[[], Sequence[str]]]:
    """An adapter by name or by version, and who may answer to that."""
    name = rng.choice(names)
    if rng.random() < 0.5:
        newest = fire.book.newest[name]
        return name, lambda: fire.book.versions_since(name, newest)
    version = f"{name}@v{rng.randint(1, fire.book.newest[name])}"
    return version, lambda: [version]


def conversation(rng: random.Random, num_words: int | None = None) -> dict[str, Any]:
    """Something to ask."""
    system = [{"role": "system", "content": question(rng)}] if rng.random() < 0.3 else []
    return {"messages": [*system, {"role": "user", "content": question(rng, num_words)}], "temperature": 0}


def common(fire: Fire, rng: random.Random) -> dict[str, Any]:
    """What the base and other adapters are asked too: the blocks in the cache that they filled must not be met."""
    return {"messages": [{"role": "user", "content": rng.choice(list(fire.book.steady))}], "temperature": 0}


async def chat(fire: Fire, rng: random.Random) -> str:
    model, allowed = some_name(fire, rng, fire.names)
    count = rng.choice((1, 1, 1, 2, 3))
    asked = common(fire, rng) if rng.random() < 0.5 else conversation(rng)
    body = {**asked, "model": model, "n": count, "max_tokens": ANSWER_LEN, "stream": rng.random() < 0.5}
    return await expect(fire, CHAT, body, allowed, count)


async def complete(fire: Fire, rng: random.Random) -> str:
    model, allowed = some_name(fire, rng, fire.names)
    prompts = [question(rng) + PROMPT_END for _ in range(rng.randint(1, 3))]
    body = {"model": model, "prompt": prompts, "temperature": 0, "max_tokens": ANSWER_LEN, "stream": rng.random() < 0.5}
    return await expect(fire, TEXT, body, allowed, len(prompts))


async def sample_of_one(fire: Fire, rng: random.Random) -> str:
    """Sampling that leaves no choice."""
    model, allowed = some_name(fire, rng, fire.names)
    body = {**conversation(rng), "model": model, "temperature": 1, "top_k": 1, "seed": 7, "max_tokens": ANSWER_LEN, "logprobs": True}
    return await expect(fire, CHAT, body, allowed, 1)


async def long_answer(fire: Fire, rng: random.Random) -> str:
    """Many together need more of the cache than there is; prompts of up to 100 tokens leave room for 200 below the context of 320."""
    model, allowed = some_name(fire, rng, fire.names)
    body = {**conversation(rng, rng.randint(1, 6)), "model": model, "max_tokens": rng.randint(80, 200), "ignore_eos": True}
    return await expect(fire, CHAT, body | {"stream": rng.random() < 0.5}, allowed, 1)


async def compose(fire: Fire, rng: random.Random) -> str:
    pair = rng.choice(fire.pairs)
    spelled = f"{pair.first}@v1+{pair.second}@v1*{1 / HALF_SCALE:g}"
    listed = [{"id": pair.first}, {"id": pair.second, "scale": 1 / HALF_SCALE}]
    asked = {"model": "base", "adapters": listed} if rng.random() < 0.5 else {"model": spelled}
    body = {**common(fire, rng), **asked, "max_tokens": ANSWER_LEN, "stream": rng.random() < 0.5}
    return await expect(fire, CHAT, body, lambda: [spelled], 1)


async def compose_by_name(fire: Fire, rng: random.Random) -> str:
    model, allowed = some_name(fire, rng, fire.composed)
    body = {**conversation(rng), "model": model, "max_tokens": ANSWER_LEN, "stream": rng.random() < 0.5}
    return await expect(fire, CHAT, body, allowed, 1)


async def ask_base(fire: Fire, rng: random.Random) -> str:
    text, answer = rng.choice(list(fire.book.steady.items()))
    body = {"model": "base", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
    reply = await fire.server.ask("POST", CHAT, body, key=fire.keys["all"])
    if reply.status != 200:
        return refused(reply)
    _, (found,) = texts_of(reply, is_stream=False, is_chat=True)
    if found != answer:
        raise WrongError(f"the base says {answer!r} to {text!r}, found {found!r}")
    return "ok"


async def ask_auto(fire: Fire, rng: random.Random) -> str:
    """A question of one of the topics is some adapter's, or nobody's; whoever answers says its own mark."""
    text = question(rng, rng.randint(4, 12), rng.choice((WORDS, *TOPICS)))
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": ANSWER_LEN}
    reply = await fire.server.ask("POST", CHAT, body, key=fire.keys["all"])
    if reply.status != 200:
        return refused(reply)
    model, (found,) = texts_of(reply, is_stream=False, is_chat=True)
    if fire.book.says.get(model) and found != fire.book.says[model]:
        raise WrongError(f"{model} says {fire.book.says[model]!r}, found {found!r}")
    if reply.headers["x-lorimer-route"] != "auto":
        raise ValueError(f"a routed reply does not say so: {reply.headers}")
    return "an adapter" if "@" in model else "the base"


async def hold_to_schema(fire: Fire, rng: random.Random) -> str:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    model, _ = some_name(fire, rng, fire.names)
    reply = await fire.server.ask(
        "POST", CHAT, {**conversation(rng), "model": model, "max_tokens": 60, "response_format": form}, key=fire.keys["all"]
    )
    if reply.status != 200:
        return refused(reply)
    (choice,) = reply.json["choices"]
    if choice["finish_reason"] == "stop" and not isinstance(json.loads(choice["message"]["content"])["sum"], int):
        raise WrongError(f"not of the form that was asked for: {choice}")
    return str(choice["finish_reason"])


async def leave_stream(fire: Fire, rng: random.Random) -> str:
    """Cut the connection in the middle of a stream."""
    model, _ = some_name(fire, rng, fire.names)
    body = {**conversation(rng), "model": model, "max_tokens": 200, "ignore_eos": True, "stream": True, "n": rng.choice((1, 2))}
    await fire.server.leave(CHAT, body, key=fire.keys["all"], after_events=rng.randint(7, 60))
    return "left"


async def leave_early(fire: Fire, rng: random.Random) -> str:
    """Cut it before the first token."""
    model, _ = some_name(fire, rng, [*fire.names, *fire.composed])
    body = {**conversation(rng, 40), "model": rng.choice((model, model, "auto")), "max_tokens": 200, "stream": rng.random() < 0.5}
    await fire.server.leave(CHAT, body, key=fire.keys["all"], after_seconds=rng.choice((0.0, 0.0, 0.01, 0.1, 0.4)))
    return "left"


async def leave_in_body(fire: Fire, rng: random.Random) -> str:
    await fire.server.leave(CHAT, {**conversation(rng, 40), "model": "base"}, key=fire.keys["all"], share=rng.uniform(0.05, 0.95))
    return "left"


async def send_too_much(fire: Fire, rng: random.Random) -> str:
    own = rng.random() < 0.5  # the key's limit, or everybody's
    body = b'{"model": "base", "x": "' + b"y" * (30_000 if own else 3 << 20) + b'"}'
    try:
        reply = await fire.server.ask("POST", CHAT, raw=body, key=fire.keys["brief" if own else "all"])
    except BrokenReplyError as exc:
        if isinstance(exc.__cause__, ConnectionError):  # the server hung up while the body was still coming: its reply was overtaken
            return "hung up"
        raise
    return refused(reply, (413, "body_too_large"))


async def send_nonsense(fire: Fire, rng: random.Random) -> str:
    raw, path = rng.choice(
        ((rng.randbytes(200), CHAT), (b'{"model": "base", "messages": [', CHAT), (b"[1, 2]", TEXT), (b"", CHAT), (b"[" * 50_000, CHAT))
    )
    return refused(await fire.server.ask("POST", path, raw=raw, key=fire.keys["all"]), (400, None))


async def send_wrong_fields(fire: Fire, rng: random.Random) -> str:
    own = conversation(rng)
    asked = rng.choice(
        (
            {**own, "model": "base", "max_tokens": "many"},
            {**own, "model": "base", "temprature": 1},
            {"model": "base", "messages": []},
            {"messages": [{"role": "user", "content": "a"}]},
            {**own, "model": "base", "n": 100_000},
            {**own, "model": "base", "max_tokens": 100_000},
            {**own, "model": "base", "adapters": [{"id": "mark00", "scale": 1e9}]},
            {**own, "model": "mark00", "adapters": [{"id": "mark01"}]},
            {**own, "model": "base", "logit_bias": {"x": 1}},
            {
                **own,
                "model": "base",
                "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}},
            },
            {**own, "model": "base", "stream_options": {"include_usage": True}},
        )
    )
    return refused(await fire.server.ask("POST", CHAT, asked, key=fire.keys["all"]), (400, None))


async def ask_unknown(fire: Fire, rng: random.Random) -> str:
    name = rng.choice(
        ("nobody", "mark00@v99", "mark00@sha256:000000000000", "../../etc/passwd", "mark00@", "a" * 900, "mark00+nobody", "\ud800")
    )
    body = {**conversation(rng), "model": name}
    return refused(await fire.server.ask("POST", CHAT, body, key=fire.keys["all"]), (404, "model_not_found"), (400, None))


async def ask_anothers(fire: Fire, rng: random.Random) -> str:
    """An adapter that the key may not use; then one that it may."""
    if rng.random() < 0.5:
        name = rng.choice(fire.names[4:])
        body = {**conversation(rng), "model": rng.choice((name, f"{name}@v1", f"mark00+{name}", "base"))}
        return refused(await fire.server.ask("POST", CHAT, body, key=fire.keys["few"]), (404, "model_not_found"))
    model, allowed = some_name(fire, rng, fire.names[:4])
    return await expect(fire, CHAT, {**conversation(rng), "model": model, "max_tokens": ANSWER_LEN}, allowed, 1, key="few")


async def ask_without_right(fire: Fire, rng: random.Random) -> str:
    body = {**conversation(rng), "model": "base"}
    key = rng.choice(("", "nonsense", "lorimer_0123456789ab_" + "0" * 64, fire.keys["all"][:-1] + "x"))
    return refused(await fire.server.ask("POST", CHAT, body, key=key), (401, "invalid_api_key"))


async def ask_too_often(fire: Fire, rng: random.Random) -> str:
    model, allowed = some_name(fire, rng, fire.names)
    return await expect(fire, CHAT, {**conversation(rng), "model": model, "max_tokens": ANSWER_LEN}, allowed, 1, key="slow")


async def ask_damaged(fire: Fire, rng: random.Random) -> str:
    """Adapters whose files, or whose fingerprint, are not what was registered."""
    name = rng.choice(("damaged", "swapped"))
    reply = await fire.server.ask("POST", CHAT, {**conversation(rng), "model": name}, key=fire.keys["all"])
    return refused(reply, (503, "adapter_quarantined"))


async def administer(fire: Fire, rng: random.Random) -> str:
    """Load and unload, with a key that may and with one that may not."""
    name, _ = some_name(fire, rng, fire.names)
    route = rng.choice(("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/unload_lora_adapter"))
    if rng.random() < 0.1:
        return refused(await fire.server.ask("POST", route, {"lora_name": name}, key=fire.keys["all"]), (403, "admin_key_required"))
    if rng.random() < 0.1:
        body = {"lora_name": name, "lora_path": "/etc"}
        return refused(await fire.server.ask("POST", "/v1/load_lora_adapter", body, key=fire.keys["ops"]), (400, "path_not_allowed"))
    reply = await fire.server.ask("POST", route, {"lora_name": name}, key=fire.keys["ops"])
    return refused(reply) if reply.status != 200 else route[4:].partition("_")[0]


async def look_around(fire: Fire, rng: random.Random) -> str:
    method, path, expected = rng.choice(
        (("GET", "/v1/models", 200), ("GET", "/healthz", 200), ("GET", "/nowhere", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405))
    )
    reply = await fire.server.ask(method, path, key=fire.keys["few"])
    if expected != 200:
        return refused(reply, (expected, None))
    if path == "/v1/models" and (seen := {card["id"].partition("@")[0] for card in reply.json["data"]}) != set(fire.names[:4]):
        raise WrongError(f"a key for {fire.names[:4]} sees {sorted(seen)}")
    return str(reply.status)


ACTIONS: dict[Action, float] = {
    chat: 20,
    complete: 10,
    sample_of_one: 4,
    long_answer: 10,
    compose: 6,
    compose_by_name: 6,
    ask_base: 12,
    ask_auto: 3,
    hold_to_schema: 2,
    leave_stream: 5,
    leave_early: 6,
    leave_in_body: 3,
    send_too_much: 1,
    send_nonsense: 2,
    send_wrong_fields: 3,
    ask_unknown: 3,
    ask_anothers: 4,
    ask_without_right: 2,
    ask_too_often: 3,
    ask_damaged: 2,
    administer: 5,
    look_around: 3,
}
