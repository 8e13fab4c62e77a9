"""How much is let in, by a clock of ours: buckets, places, the queue and its shares."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.serving.grants import Caller, Grant, Quota
from lorimer.serving.limits import Bucket, Limits, _duration, estimate_tokens, num_answers
from lorimer.serving.protocol import ChatCompletionRequest, CompletionRequest
from lorimer.serving.refusals import ApiError

GUEST = Caller()


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counted() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def limits(clock: Clock, counted: list[tuple[str, str]]) -> Limits:
    return Limits(max_running=4, max_waiting=8, clock=clock, count=lambda tenant, limit: counted.append((tenant, limit)))


def caller(tenant: str = "acme", **quota: int) -> Caller:
    return Caller(tenant=tenant, key_prefix="abc", grant=Grant(), quota=Quota(**quota))


def ask(limits: Limits, who: Caller) -> None:
    with limits.request(who):
        pass


def test_requests_of_a_minute_and_then_as_they_come_back(limits: Limits, clock: Clock) -> None:
    who = caller(requests_per_minute=30)
    for _ in range(30):
        ask(limits, who)
    with pytest.raises(ApiError) as caught:
        ask(limits, who)
    error = caught.value
    assert (error.status, error.kind, error.code) == (429, "requests", "rate_limit_exceeded")
    assert (error.headers["retry-after"], error.headers["retry-after-ms"]) == ("2", "2000")
    clock.at += 1.9
    with pytest.raises(ApiError):
        ask(limits, who)
    clock.at += 0.2
    ask(limits, who)
    clock.at += 3600
    for _ in range(30):  # what was not used is not saved up beyond a minute's worth
        ask(limits, who)
    with pytest.raises(ApiError):
        ask(limits, who)


@given(
    per_minute=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), min_size=1, max_size=30),
)
def test_bucket_gives_no_more_than_its_rate(per_minute: int, steps: list[tuple[float, int]]) -> None:
    """Over any stretch of time: a full bucket and what flowed in."""
    bucket, at, taken = Bucket(per_minute, 0.0), 0.0, 0
    for seconds, amount in steps:
        at += seconds
        bucket.fill(per_minute, at)
        if not bucket.seconds_until(amount):
            bucket.take(min(amount, per_minute))
            taken += min(amount, per_minute)
    assert taken <= per_minute + at * per_minute / 60 + 1e-6
    assert bucket.level <= per_minute


def test_tokens_are_estimated_then_corrected(limits: Limits, clock: Clock) -> None:
    who = caller(tokens_per_minute=600)
    admission = limits.admit(who, num_sequences=1, num_tokens=500)
    with pytest.raises(ApiError) as caught:
        limits.admit(who, num_sequences=1, num_tokens=200)
    assert (caught.value.kind, caught.value.headers["retry-after"]) == ("tokens", "10")
    admission.settle(100)
    admission.settle(0)  # only the first word counts
    assert limits.headers(who)["x-ratelimit-remaining-tokens"] == "500"
    limits.admit(who, num_sequences=1, num_tokens=200).settle(2000)  # more than there was: the bucket owes
    with pytest.raises(ApiError) as caught:
        limits.admit(who, num_sequences=1, num_tokens=1)
    assert caught.value.headers["retry-after"] == "151"
    clock.at += 151
    limits.admit(who, num_sequences=1, num_tokens=1)


def test_estimate_above_the_limit_waits_for_a_full_bucket_only(limits: Limits) -> None:
    who = caller(tokens_per_minute=100)
    admission = limits.admit(who, num_sequences=1, num_tokens=2**70)
    admission.settle(20)
    assert limits.headers(who)["x-ratelimit-remaining-tokens"] == "80"


def test_requests_at_once(limits: Limits, counted: list[tuple[str, str]]) -> None:
    who = caller(concurrency=2)
    with limits.request(who), limits.request(who):
        with pytest.raises(ApiError) as caught:
            ask(limits, who)
        ask(limits, caller("other", concurrency=1))
    assert (caught.value.status, caught.value.kind, caught.value.headers["retry-after"]) == (429, "concurrency", "1")
    for error in (RuntimeError, None):
        try:
            with limits.request(who):
                if error:
                    raise error
        except RuntimeError:
            pass
    with limits.request(who), limits.request(who):  # every place is free again
        pass
    assert counted == [("acme", "concurrency")]


def test_refused_requests_take_nothing(limits: Limits) -> None:
    who = caller(requests_per_minute=10, tokens_per_minute=10, concurrency=1)
    with limits.request(who):
        for _ in range(20):
            with pytest.raises(ApiError):
                ask(limits, who)
    assert limits.headers(who)["x-ratelimit-remaining-requests"] == "9"


def test_tenants_have_accounts_of_their_own_and_keys_share_one(limits: Limits) -> None:
    ask(limits, caller("acme", requests_per_minute=1))
    ask(limits, caller("other", requests_per_minute=1))
    with pytest.raises(ApiError):
        ask(limits, Caller(tenant="acme", key_prefix="another", quota=Quota(requests_per_minute=1)))


def test_changed_limits_hold_at_once(limits: Limits, clock: Clock) -> None:
    ask(limits, caller(requests_per_minute=100))
    assert limits.headers(caller(requests_per_minute=10))["x-ratelimit-remaining-requests"] == "10"
    assert limits.headers(caller()) == {}
    for _ in range(200):
        ask(limits, caller())


def test_headers_have_openais_names(limits: Limits) -> None:
    who = caller(requests_per_minute=60, tokens_per_minute=6000)
    ask(limits, who)
    limits.admit(who, num_sequences=1, num_tokens=1000)
    assert limits.headers(who) == {
        "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000", "x-ratelimit-remaining-tokens": "5000", "x-ratelimit-reset-tokens": "10s",
    }  # fmt: skip
    assert limits.headers(GUEST) == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0121, "13ms"), (1.5, "1.5s"), (59.94, "59.9s"), (60, "1m0s"), (359.2, "6m0s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_queue_is_bounded(limits: Limits, counted: list[tuple[str, str]]) -> None:
    """Four run and eight wait."""
    admissions = [limits.admit(GUEST, num_sequences=1, num_tokens=1) for _ in range(12)]
    with pytest.raises(ApiError) as caught:
        limits.admit(GUEST, num_sequences=1, num_tokens=1)
    error = caught.value
    assert (error.status, error.code, error.headers["retry-after"]) == (503, "overloaded", "1")
    assert counted == [("", "queue")]
    admissions[5].settle(10)
    with pytest.raises(ApiError):
        limits.admit(GUEST, num_sequences=2, num_tokens=1)
    limits.admit(GUEST, num_sequences=1, num_tokens=1)


def test_one_tenant_leaves_half_of_the_queue_to_others(limits: Limits) -> None:
    for _ in range(8):
        limits.admit(caller("noisy"), num_sequences=1, num_tokens=1)
    with pytest.raises(ApiError) as caught:
        limits.admit(caller("noisy"), num_sequences=1, num_tokens=1)
    assert caught.value.code == "overloaded"
    for tenant in ("a", "b", "c", "d"):
        limits.admit(caller(tenant), num_sequences=1, num_tokens=1)
    with pytest.raises(ApiError):
        limits.admit(caller("e"), num_sequences=1, num_tokens=1)


@pytest.mark.parametrize(("who", "num"), [(GUEST, 13), (caller(), 9)])
def test_more_answers_than_the_queue_ever_holds_are_a_400(limits: Limits, who: Caller, num: int) -> None:
    with pytest.raises(ApiError, match=f"asks for {num} answers, at most {num - 1}") as caught:
        limits.admit(who, num_sequences=num, num_tokens=1)
    assert caught.value.status == 400
    limits.admit(who, num_sequences=num - 1, num_tokens=1)


def test_everything_settled_leaves_nothing_behind(limits: Limits) -> None:
    tenants = itertools.cycle(("a", "b"))
    for _ in range(50):
        admissions = [limits.admit(caller(next(tenants)), num_sequences=2, num_tokens=5) for _ in range(6)]
        for admission in admissions:
            admission.settle(7)
    assert limits.num_sequences == 0
    assert {account.num_sequences for account in limits._accounts.values()} == {0}


@pytest.mark.parametrize(
    ("kind", "fields", "num", "num_tokens"),
    [
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10}, 1, 110),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": "x"}]}, 1, 1124),
        (CompletionRequest, {"prompt": "x"}, 1, 116),
        (CompletionRequest, {"prompt": ["x", "y"], "max_tokens": 5}, 2, 110),
        (CompletionRequest, {"prompt": [1, 2, 3], "max_tokens": 5}, 1, 105),
    ],
)
def test_cost_is_estimated_from_the_body(kind: Any, fields: dict[str, Any], num: int, num_tokens: int) -> None:
    body = kind(model="base", **fields)
    assert (num_answers(body), estimate_tokens(body, body_len=400)) == (num, num_tokens)
