"""Paraphrases through a real HTTP server that speaks OpenAI's chat completions."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lorimer.cli.main import run
from lorimer.data.augment import Augmentation, Progress, augment, num_wanted
from lorimer.data.chat_endpoint import ChatEndpoint
from lorimer.data.curate import curate
from lorimer.data.dataset import Dataset, read_dataset
from lorimer.data.example import Example, Message
from lorimer.data.paraphrase import Guard, make_row, shingle
from lorimer.errors import ConfigError, DataError, UnavailableError

WORDS = [
    "where",
    "when",
    "how",
    "would",
    "could",
    "find",
    "get",
    "my",
    "new",
    "old",
    "first",
    "last",
    "lost",
    "broken",
    "blue",
    "red",
    "small",
    "big",
    "early",
    "late",
    "paper",
    "gift",
    "house",
]
Answer = tuple[int, dict[str, Any]]


def say(text: str, num_tokens: int = 10) -> Answer:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"total_tokens": num_tokens}}


class Endpoint(ThreadingHTTPServer):
    """Answers each request with what `reply` makes of its question and of how many came before."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply: Callable[[str, int], Answer] = lambda question, index: say(f"Put differently, {question}")
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.append(self.headers.get("Authorization", ""))
            index = len(self.server.requests) - 1
        status, value = self.server.reply(body["messages"][-1]["content"].split("Message:\n")[1], index)
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        thread = threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield endpoint
        endpoint.shutdown()
        thread.join()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    path = tmp_path / "tickets.jsonl"
    things = ("invoice", "parcel", "refund", "account", "password", "voucher", "address", "delivery", "card", "order")
    draw = random.Random(0)
    rows = [
        {"prompt": " ".join(draw.sample(WORDS, 7)) + f" {thing} {2000 + index}?", "completion": thing}
        for index in range(6)
        for thing in things
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return curate([path], name="tickets")


def make(dataset: Dataset, server: Endpoint, **settings: Any) -> Dataset:
    endpoint = ChatEndpoint(url=server.url, key="k", sleep=lambda seconds: None)
    *_, made = augment(dataset, endpoint, Augmentation(model="m", **settings), name="more")
    assert isinstance(made, Dataset)
    return made


def test_paraphrases_are_marked_and_held_out_rows_untouched(dataset: Dataset, server: Endpoint) -> None:
    made = make(dataset, server, share=0.2)
    synthetic = [example for example in made.train if example.parent]
    assert len(synthetic) == num_wanted(len(dataset.train), Augmentation(model="m")) == len(dataset.train) // 4
    parents = {example.record_digest: example for example in dataset.train}
    for example in synthetic:
        parent = parents[example.parent]
        assert example.tags == {**parent.tags, "synthetic": "paraphrase", "synthetic_model": "m"}
        assert example.answer == parent.answer
        assert example.messages[0].content == f"Put differently, {parent.messages[0].content}"
    assert (made.validation, made.test, made.train[: len(dataset.train)]) == (dataset.validation, dataset.test, dataset.train)
    assert made.card["augmentations"][-1]["share"] == len(synthetic) / len(made.train)
    assert "of the training split is synthetic" in made.card["findings"][-1]["message"]
    assert read_dataset("more").digest == made.digest != dataset.digest
    assert set(server.keys) == {"Bearer k"}


def test_augmentation_stopped_goes_on_where_it_was(dataset: Dataset, server: Endpoint) -> None:
    fine = server.reply
    server.reply = lambda question, index: fine(question, index) if index < 5 else (503, {"error": {"message": "full"}})
    with pytest.raises(UnavailableError, match=r"full.*kept"):
        make(dataset, server, concurrency=1)
    num_before = len(server.requests)
    server.reply = fine
    resumed = make(dataset, server, concurrency=1)
    wanted = resumed.card["augmentations"][-1]["num_made"]
    assert wanted - 5 <= len(server.requests) - num_before <= wanted - 5 + 1
    again = make(dataset, server, concurrency=3)
    assert again.digest == resumed.digest


def test_augmentation_tries_again_what_may_pass_and_not_what_cannot(dataset: Dataset, server: Endpoint) -> None:
    fine = server.reply
    server.reply = lambda question, index: fine(question, index) if index % 3 else (429, {"error": {"message": "slow down"}})
    assert make(dataset, server, max_rows=3, concurrency=1).card["augmentations"][-1]["num_made"] == 3
    server.reply = lambda question, index: (401, {"error": {"message": "no such key"}})
    with pytest.raises(ConfigError, match="401 no such key"):
        make(dataset, server, seed=1)


@pytest.mark.parametrize("broken", [{}, {"choices": []}, {"choices": [{"message": None}]}, [1]])
def test_answers_of_no_known_form_end_with_a_sentence(dataset: Dataset, server: Endpoint, broken: Any) -> None:
    server.reply = lambda question, index: (200, broken)
    with pytest.raises(UnavailableError, match="no usable answer in 5 tries"):
        make(dataset, server)


def test_nobody_listening_ends_with_a_sentence(dataset: Dataset) -> None:
    endpoint = ChatEndpoint(url="http://127.0.0.1:9/v1", sleep=lambda seconds: None)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
        list(augment(dataset, endpoint, Augmentation(model="m")))


def test_augmentation_stops_at_its_tokens(dataset: Dataset, server: Endpoint) -> None:
    server.reply = lambda question, index: say(f"Tell me: {question}", 100)
    made = make(dataset, server, max_tokens=250, concurrency=1)
    assert made.card["augmentations"][-1]["num_made"] == 3
    assert "were wanted" in made.card["findings"][-1]["message"]
    assert len(server.requests) <= 4


def test_useless_paraphrases_leave_no_dataset(dataset: Dataset, server: Endpoint) -> None:
    server.reply = lambda question, index: say(question.upper())
    with pytest.raises(DataError, match="says the same"):
        make(dataset, server, max_rows=2)
    assert len(server.requests) == 20


def test_augmentation_does_not_paraphrase_paraphrases(dataset: Dataset, server: Endpoint) -> None:
    once = make(dataset, server, share=0.1)
    server.reply = lambda question, index: say(f"In short: {question}")
    twice = make(once, server, share=0.1)
    assert {example.parent for example in twice.train if example.parent} <= {example.record_digest for example in dataset.train}


ROW = Example(
    messages=(Message(role="user", content="How do I pay bill 42 for {name}?"), Message(role="assistant", content="pay")), source="a:1"
)
HELD_OUT = Example(
    messages=(Message(role="user", content="Which way is bill 42 for {name} paid?"), Message(role="assistant", content="pay")), source="a:2"
)


@pytest.mark.parametrize(
    ("paraphrase", "reason"),
    [
        ("how do i pay  bill 42 for {name}?", "the paraphrase says the same"),
        ("How do I pay bill 43 for {name}?", "a number, link or placeholder changed"),
        ("Tell me how bill 42 is paid.", "a number, link or placeholder changed"),
        ("which way is bill 42 for {name} paid?", "it is a validation or test row"),
        ("Well, which way is bill 42 for {name} paid?", "it is near a validation or test row"),
        ("", "the endpoint said nothing"),
        ("42 {name} " + "so " * 100, "the paraphrase is far longer than its parent"),
    ],
)
def test_paraphrases_are_refused_for_a_reason(paraphrase: str, reason: str) -> None:
    assert make_row(ROW, paraphrase, "m", Guard([HELD_OUT], [ROW])) == (None, reason)


def test_paraphrase_is_cleaned_of_its_wrapping() -> None:
    made = make_row(ROW, 'Sure, here it is:\n"Settle bill 42 of {name}: how?"', "m", Guard([HELD_OUT], [ROW]))
    assert made.example is not None
    assert made.example.messages[0].content == "Settle bill 42 of {name}: how?"


def test_shingles_of_scripts_without_spaces_are_of_characters() -> None:
    assert len(shingle("注文をキャンセルしたいのですが")) > 5
    assert shingle("Hello") == {"hello"}


@pytest.mark.parametrize(
    ("settings", "said"), [({"share": 0.9}, "at most 0.5"), ({"max_rows": 0}, "at least 1"), ({"temperature": 3}, "between 0 and 2")]
)
def test_augmentation_refuses_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Augmentation(model="m", **settings)


def test_endpoint_refuses_what_is_no_url() -> None:
    with pytest.raises(ConfigError, match="no URL"):
        ChatEndpoint(url="localhost:8000")
    with pytest.raises(ConfigError, match="give a key"):
        ChatEndpoint(url="http://me:secret@host/v1")
    assert "secret" not in repr(ChatEndpoint(url="http://host/v1", key="secret"))


def test_command_augments(dataset: Dataset, server: Endpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    arguments = ["data", "augment", "tickets", "--endpoint", server.url, "--model", "m", "--key-env", "MY_KEY", "--name", "more", "--json"]
    assert run(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["digest"] == read_dataset("more").digest
    assert printed["num_made"] > 0
    monkeypatch.delenv("MY_KEY")
    assert run(arguments) == 2
    assert "'MY_KEY'" in capsys.readouterr().err


def test_progress_counts_up(dataset: Dataset, server: Endpoint) -> None:
    steps = list(augment(dataset, ChatEndpoint(url=server.url), Augmentation(model="m", max_rows=4)))
    assert [step.num_made for step in steps if isinstance(step, Progress)] == [1, 2, 3, 4]
