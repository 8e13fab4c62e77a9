"""A real HTTP server that speaks OpenAI's chat completions and judges by a rule."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lorimer.data.example import Message
from lorimer.evaluation.judge.record import Judge
from lorimer.evaluation.judge.spec import JudgeSpec
from lorimer.evaluation.task import Sample, Task

PAIR_PROMPT = "Which answer is better?\nQ: {question}\nWanted: {reference}\n<<A>>{answer_a}<<B>>{answer_b}<<END>>"
SCORE_PROMPT = "How good is it?\nQ: {question}\nWanted: {reference}\n<<A>>{answer}<<END>>"
Rule = Callable[[str, int], Any]
"""(prompt, how many came before) -> the judge's words; or a status with headers, `CLOSE`, or a whole reply."""
CLOSE = object()


def answers_in(prompt: str) -> list[str]:
    """The answers a prompt shows."""
    shown = prompt.split("<<A>>")[1].split("<<END>>")[0]
    return shown.split("<<B>>")


def always_first(prompt: str, index: int) -> str:
    return "Verdict: A"


def longest(prompt: str, index: int) -> str:
    a, b = answers_in(prompt)
    return f"I like detail.\nVerdict: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}"


def by_quality(prompt: str, index: int) -> str:
    """Each answer's number says how good it is."""
    a, b = (int(found[0]) if (found := re.findall(r"\d+", answer)) else 0 for answer in answers_in(prompt))
    return f"Verdict: {'A' if a > b else 'B' if b > a else 'tie'}"


def is_right(prompt: str, index: int) -> str:
    return "Verdict: yes" if "good" in answers_in(prompt)[0] else "Verdict: no"


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rule, self.model, self.fingerprint, self.root = rule, "judge-2026-01", "fp_1", ""
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.num_opened = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_GET(self) -> None:
        cards = [{"id": self.server.model, "object": "model", "root": self.server.root}]
        self._send(200, {"object": "list", "data": cards} if self.server.root else {"detail": "no such thing"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        is_item = "<<A>>" in prompt
        with self.server.lock:
            self.server.keys.add(self.headers.get("Authorization", ""))
            index = len(self.server.asked)
            self.server.num_opened += not is_item
            if is_item:
                self.server.asked.append(prompt)
                self.server.bodies.append(body)
        said = self.server.rule(prompt, index) if is_item else "yes"
        if said is CLOSE:
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(said, tuple):
            status, headers = said
            self._send(status, {"error": {"message": f"not now, {self.headers.get('Authorization', '')}"}}, headers)
            return
        if not isinstance(said, dict):
            said = {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
        self._send(200, {"model": self.server.model, "system_fingerprint": self.server.fingerprint, **said})

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, one in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, one)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve_judge(rule: Rule) -> Iterator[JudgeServer]:
    with JudgeServer(rule) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def make_spec(url: str, kind: str = "pair", **changes: Any) -> JudgeSpec:
    own = {"kind": "pair", "prompt": PAIR_PROMPT} if kind == "pair" else {"kind": "score", "prompt": SCORE_PROMPT, "scale": kind}
    return JudgeSpec(**{"judge": "taste", "endpoint": url, "model": "judge", **own, **changes})


def impatient(judge: Judge) -> Judge:
    """The same judge, not waiting between tries."""
    return replace(judge, endpoint=replace(judge.endpoint, sleep=lambda seconds: None))


def make_task(num_items: int) -> Task:
    samples = tuple(
        Sample(id=str(n), prompt=(Message(role="user", content=f"question {n}?"),), target=f"wanted {n}") for n in range(num_items)
    )
    return Task(name="tone", metric="judge", samples=samples, dataset_digest="d" * 64)
