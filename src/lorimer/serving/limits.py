"""How much is let in: each tenant's requests and tokens per minute and requests at once, and how many answers may wait at all.

Rates are token buckets (Turner 1986, IEEE Communications Magazine 24(10)): a bucket holds a minute's worth and fills steadily, so that a
tenant that has been idle may take a minute's worth at once. What an answer will cost is estimated when it is let in and corrected when it
has ended; a bucket may owe. Everything here belongs to the event loop's thread, and to one process: two servers count apart.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lorimer.serving.grants import Caller
from lorimer.serving.protocol import ChatCompletionRequest, CompletionRequest
from lorimer.serving.refusals import ApiError

MAX_WAITING = 256
TENANT_SHARE = 0.5  # of the queue; the rest stays open for the others
RETRY_SECONDS = 1.0  # where nobody knows when there will be room: an answer has to end first
BYTES_PER_TOKEN = 4  # of a request's body, roughly, whatever its language and form
MINUTE = 60.0

Count = Callable[[str, str], None]


class Bucket:
    """What is left of a limit per minute."""

    def __init__(self, per_minute: int, at: float) -> None:
        self.per_minute, self.level, self._at = per_minute, float(per_minute), at

    def fill(self, per_minute: int, at: float) -> None:
        """Add what has come in since the last time; the limit may have changed meanwhile."""
        gained = max(0.0, at - self._at) * per_minute / MINUTE
        self.per_minute, self.level, self._at = per_minute, min(float(per_minute), self.level + gained), at

    def seconds_until(self, amount: float) -> float:
        """Until it holds so much; never longer than until it is full."""
        return max(0.0, min(amount, self.per_minute) - self.level) * MINUTE / self.per_minute

    def take(self, amount: float) -> None:
        """Take out, beyond the bottom if need be; less than nothing puts back."""
        self.level = min(float(self.per_minute), self.level - amount)


@dataclass(slots=True, eq=False)
class Account:
    """What one tenant has taken and holds."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    num_requests: int = 0
    """At present."""
    num_sequences: int = 0
    """That run or wait."""


@dataclass(slots=True, kw_only=True, eq=False)
class Admission:
    """A request that was let in, until its answers have ended."""

    limits: "Limits" = field(repr=False)
    account: Account = field(repr=False)
    num_sequences: int
    num_tokens: int
    """Estimated."""
    is_settled: bool = False

    def settle(self, num_tokens: int) -> None:
        """Its answers have ended: count what they took instead of what was estimated. Only the first word counts."""
        if not self.is_settled:
            self.is_settled = True
            self.limits.settle(self, num_tokens)


class Limits:
    """Who has taken how much."""

    def __init__(
        self,
        *,
        max_running: int,
        max_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.monotonic,
        count: Count = lambda tenant, limit: None,
    ) -> None:
        self.max_sequences = max_running + max_waiting
        self.max_sequences_of_tenant = max_running + max(1, int(max_waiting * TENANT_SHARE))
        self.clock, self.count = clock, count
        self.num_sequences = 0
        self._accounts: dict[str, Account] = {}  # by tenant: as many as the operator made

    @contextlib.contextmanager
    def request(self, caller: Caller) -> Iterator[None]:
        """Count a request of a caller, and hold its place among those at once until the block ends.

        Raises:
            ApiError: 429 if the tenant's requests of this minute, or its places, are used up.
        """
        account, most = self._account(caller), caller.quota.concurrency
        if account.requests is not None and (seconds := account.requests.seconds_until(1)):
            raise self._too_many(caller, "requests", f"{account.requests.per_minute:,} requests per minute", seconds)
        if most is not None and account.num_requests >= most:
            raise self._too_many(caller, "concurrency", f"{most:,} requests at once", RETRY_SECONDS)
        if account.requests is not None:
            account.requests.take(1)
        account.num_requests += 1
        try:
            yield
        finally:
            account.num_requests -= 1

    def admit(self, caller: Caller, *, num_sequences: int, num_tokens: int) -> Admission:
        """Let in a request that was understood, `num_tokens` being what it may cost; to be settled when its answers have ended.

        Raises:
            ApiError: 429 if the tenant's tokens of this minute are used up, 503 if too many wait already, 400 if no queue would hold it.
        """
        account = self._account(caller)
        most = self.max_sequences_of_tenant if caller.tenant else self.max_sequences
        if num_sequences > most:
            raise ApiError(400, f"the request asks for {num_sequences} answers, at most {most} are taken at once: ask for fewer")
        if account.tokens is not None and (seconds := account.tokens.seconds_until(num_tokens)):
            raise self._too_many(caller, "tokens", f"{account.tokens.per_minute:,} tokens per minute", seconds)
        if account.num_sequences + num_sequences > most or self.num_sequences + num_sequences > self.max_sequences:
            raise self._overloaded(caller)
        if account.tokens is not None:
            num_tokens = min(num_tokens, account.tokens.per_minute)  # as was asked of it above
            account.tokens.take(num_tokens)
        account.num_sequences += num_sequences
        self.num_sequences += num_sequences
        return Admission(limits=self, account=account, num_sequences=num_sequences, num_tokens=num_tokens)

    def settle(self, admission: Admission, num_tokens: int) -> None:
        """See `Admission.settle`."""
        admission.account.num_sequences -= admission.num_sequences
        self.num_sequences -= admission.num_sequences
        if admission.account.tokens is not None:
            admission.account.tokens.take(num_tokens - admission.num_tokens)

    def headers(self, caller: Caller) -> dict[str, str]:
        """What is left of a caller's rates, under the names OpenAI gave it; nothing where there is no limit."""
        account = self._account(caller)
        found = dict[str, str]()
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
                found[f"x-ratelimit-reset-{name}"] = _duration(bucket.seconds_until(bucket.per_minute))
        return found

    def _account(self, caller: Caller) -> Account:
        """A caller's account, with its buckets filled up to now; its quota may have been changed since."""
        account = self._accounts.setdefault(caller.tenant, Account())
        at, quota = self.clock(), caller.quota
        account.requests = _filled(account.requests, quota.requests_per_minute, at)
        account.tokens = _filled(account.tokens, quota.tokens_per_minute, at)
        return account

    def _too_many(self, caller: Caller, limit: str, most: str, seconds: float) -> ApiError:
        self.count(caller.tenant, limit)
        message = f"tenant {caller.tenant!r} may take {most}, by all its keys together: try again in {_duration(seconds)}"
        headers = {**self.headers(caller), **_retry_headers(seconds)}
        return ApiError(429, message, kind=limit, code="rate_limit_exceeded", headers=headers)

    def _overloaded(self, caller: Caller) -> ApiError:
        self.count(caller.tenant, "queue")
        message = "too many requests wait already: try again soon"
        return ApiError(503, message, kind="server_error", code="overloaded", headers=_retry_headers(RETRY_SECONDS))


def num_answers(body: ChatCompletionRequest | CompletionRequest) -> int:
    """How many answers a request asks for."""
    num_prompts = len(body.prompts) if isinstance(body, CompletionRequest) else 1
    return num_prompts * body.n


def estimate_tokens(body: ChatCompletionRequest | CompletionRequest, *, body_len: int) -> int:
    """What a request may cost, before anything is tokenised: its body at four bytes a token, its answers at their longest."""
    return body_len // BYTES_PER_TOKEN + num_answers(body) * (body.num_tokens_asked or body.default_answer_len)


def _filled(bucket: Bucket | None, per_minute: int | None, at: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, at)
    bucket.fill(per_minute, at)
    return bucket


def _retry_headers(seconds: float) -> dict[str, str]:
    """When to try again: HTTP's header in whole seconds, and the finer one that OpenAI's clients read first."""
    return {"retry-after": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, math.ceil(seconds * 1000)))}


def _duration(seconds: float) -> str:
    """`12ms`, `1.5s`, `6m0s`: as OpenAI writes it."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < MINUTE:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
