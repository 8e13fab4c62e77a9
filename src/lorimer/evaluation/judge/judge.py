"""A model as judge: it is asked for a verdict on each answer, or on each two answers in both orders, and held to what it was calibrated as.

Nothing is asked before `judge_record.open_judge` has seen which version answers. A change of that version or of the judge's prompt is an
error, never a silent rerun. What the judge says must be one verdict in a strict form; anything else is unscored, with its words as the
explanation.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from lorimer.data.chat_endpoint import Reply
from lorimer.errors import ConfigError, IntegrityError, LorimerError, RefusedError, UnavailableError
from lorimer.evaluation.judge.record import Judge, list_changes
from lorimer.evaluation.judge.replies import KeptReplies, Verdict, parse_verdict
from lorimer.evaluation.judge.spec import VALUES, JudgeSpec
from lorimer.evaluation.report import prompt_text
from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.task import Task
from lorimer.storage import digest_of

NUM_FAILURES = 3
"""So many questions in a row without an answer, and the endpoint is taken to be down."""
INCONSISTENT = "the judge's verdict changes with the order of the two answers, which counts as a tie"
SWAPPED = {"A": "B", "B": "A", "tie": "tie"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a judge is shown: one answer, or two."""

    question: str
    answers: tuple[str | None, ...]
    reference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What came out for one item."""

    label: str | None
    """The verdict, of a pair on its answers as they stand in the item; None if there is none."""
    explanation: str
    said: tuple[str | None, ...] = ()
    """The verdict in each order, as the judge said it; empty where it was not asked."""

    @property
    def is_inconsistent(self) -> bool:
        """Whether the two orders gave two verdicts."""
        return len(self.said) == 2 and None not in self.said and SWAPPED[str(self.said[0])] != self.said[1]


def judge_answers(judge: Judge, task: Task, answers: Sequence[str | None]) -> Iterator[Score]:
    """Scores by a judge of kind `score`, in the task's order: yes is 1 and no 0; 1 to 5 are 0 to 1 in quarters.

    Raises:
        LorimerError: if the endpoint is down or another version answers; what was said before is kept, the same call goes on there.
    """
    _require(judge, "score")
    pairs = zip(task.samples, answers, strict=True)
    items = [Item(question=prompt_text(sample.prompt), answers=(answer,), reference=sample.target) for sample, answer in pairs]
    for item, reading in zip(items, read_items(judge, items), strict=True):
        yield _score(reading, item)


def judge_pairs(
    judge: Judge, task: Task, candidate_answers: Sequence[str | None], baseline_answers: Sequence[str | None]
) -> Iterator[Score]:
    """Scores by a judge of kind `pair`: 1 where the candidate's answer is better, 0.5 for a tie, 0 where it is worse.

    Every pair is asked in both orders. Two verdicts that contradict each other are a tie; `count_inconsistent` says how many were.

    Raises:
        LorimerError: as `judge_answers`.
    """
    _require(judge, "pair")
    triples = zip(task.samples, candidate_answers, baseline_answers, strict=True)
    items = [Item(question=prompt_text(sample.prompt), answers=(a, b), reference=sample.target) for sample, a, b in triples]
    for item, reading in zip(items, read_items(judge, items), strict=True):
        yield _score(reading, item)


def count_inconsistent(scores: Iterable[Score]) -> int:
    """How many of `judge_pairs`' scores are ties because the judge preferred a place, not an answer."""
    return sum(score.explanation.startswith(INCONSISTENT) for score in scores)


def read_items(judge: Judge, items: Sequence[Item]) -> Iterator[Reading]:
    """Ask about every item and read the verdicts, in order; what was asked before is not asked again."""
    spec = judge.spec
    prompts = [_prompts(spec, item) for item in items]
    verdicts = _ask_all(judge, [prompt for asked in prompts for prompt in asked])
    for item, asked in zip(items, prompts, strict=True):
        said = list(islice(verdicts, len(asked)))
        yield _read_pair(said) if len(said) == 2 else _read_one(said) if said else _read_unasked(item)


def _prompts(spec: JudgeSpec, item: Item) -> list[str]:
    """What is asked about an item: of a pair twice, unless its answers are equal; nothing where an answer is missing."""
    values = {"question": item.question, "reference": item.reference}
    if None in item.answers or len(set(item.answers)) != len(item.answers):
        return []
    if spec.kind == "score":
        return [spec.render(values | {"answer": str(item.answers[0])})]
    first, second = map(str, item.answers)
    return [spec.render(values | {"answer_a": a, "answer_b": b}) for a, b in ((first, second), (second, first))]


def _read_unasked(item: Item) -> Reading:
    if None in item.answers:
        return Reading(label=None, explanation="no answer was given")
    return Reading(label="tie", explanation="the two answers are equal")


def _read_one(said: Sequence[Verdict]) -> Reading:
    return Reading(label=said[0].value, explanation=said[0].explanation, said=(said[0].value,))


def _read_pair(said: Sequence[Verdict]) -> Reading:
    first, second = said
    both = (first.value, second.value)
    if first.value is None or second.value is None:
        return Reading(label=None, explanation=(first if first.value is None else second).explanation, said=both)
    if SWAPPED[first.value] != second.value:
        explanation = f"{INCONSISTENT}: {first.explanation}\n\n(in the other order) {second.explanation}"
        return Reading(label="tie", explanation=explanation, said=both)
    return Reading(label=first.value, explanation=first.explanation, said=both)


def _score(reading: Reading, item: Item) -> Score:
    value = None if reading.label is None else VALUES[reading.label]
    return Score(value=value, answer=item.answers[0] or "", explanation=reading.explanation)


def _ask_all(judge: Judge, prompts: Sequence[str]) -> Iterator[Verdict]:
    """Verdicts in the order of the prompts, a few asked for at a time, so that the result does not depend on which came first."""
    kept = KeptReplies(judge.replies_path)
    queue, num_failures = iter(prompts), 0
    waiting: deque[Future[Reply | LorimerError]] = deque()
    with ThreadPoolExecutor(judge.spec.concurrency) as pool:
        try:
            while True:
                waiting.extend(pool.submit(_ask, judge, kept, one) for one in islice(queue, 2 * judge.spec.concurrency - len(waiting)))
                if not waiting:
                    return
                answer = waiting.popleft().result()
                if isinstance(answer, LorimerError):  # of this question alone, unless it goes on: unscored, and asked again next time
                    num_failures += 1
                    if num_failures == NUM_FAILURES:
                        raise answer
                    yield Verdict(value=None, explanation=f"no verdict: {answer}")
                    continue
                num_failures = 0
                yield parse_verdict(answer.text, judge.spec.allowed, answer.finish_reason)
        finally:
            for future in waiting:
                future.cancel()


def _ask(judge: Judge, kept: KeptReplies, prompt: str) -> Reply | LorimerError:
    key = digest_of([judge.digest, prompt])
    if key in kept.replies:
        return kept.replies[key]
    try:
        reply = judge.endpoint.ask(prompt, model=judge.spec.model, temperature=0.0, seed=0, max_tokens=judge.spec.max_tokens)
    except (UnavailableError, RefusedError) as exc:
        return exc
    found = {"model": reply.model or judge.spec.model, "fingerprint": reply.system_fingerprint}
    pinned = {"model": judge.pins.model, "fingerprint": judge.pins.fingerprint}
    if found != pinned:
        raise IntegrityError(
            f"judge {judge.spec.judge!r} changed while it was asked: {list_changes(pinned, found)}: ask for one version, by a name that "
            "does not move, then calibrate that one"
        )
    return kept.keep(key, reply)


def _require(judge: Judge, kind: str) -> None:
    if judge.spec.kind != kind:
        raise ConfigError(f"judge {judge.spec.judge!r} is of kind {judge.spec.kind!r}, here one of kind {kind!r} is needed")
