"""Who runs next: turns between tenants and adapters, room given back, nobody forgotten. The clock is ours."""

from lorimer.inference.composition import alone
from lorimer.inference.kv_cache import KVCache, Work
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.scheduler import Scheduler
from lorimer.inference.sequence import Sequence


class Clock:
    """Seconds that pass when we say so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def scheduler(*, num_tokens: int = 32 * 1000, max_sequences: int = 4, tokens: int = 64, clock: Clock | None = None) -> Scheduler:
    return Scheduler(
        KVCache(num_tokens),
        base_digest="b",
        max_sequences=max_sequences,
        max_tokens_per_step=tokens,
        clock=clock or Clock(),
        max_wait_seconds=10.0,
    )


def sequence(length: int = 10, *, tenant: str = "", adapter: str | None = None, first: int = 0) -> Sequence:
    ids = tuple(range(first, first + length))
    return Sequence(prompt_ids=ids, tenant=tenant, composition=alone(adapter), params=SamplingParams(max_tokens=10))


def finish(own: Scheduler, works: list[Work]) -> list[Sequence]:
    """Let every sequence of a step end with it."""
    own.note_computed(works)
    for work in works:
        own.remove(work.sequence)
    return [work.sequence for work in works]


def test_noisy_tenant_does_not_hold_up_another() -> None:
    own = scheduler(max_sequences=1, tokens=4096)
    for number in range(50):
        own.add(sequence(400, tenant="noisy", first=number * 1000))
    quiet = sequence(10, tenant="quiet")
    own.add(quiet)
    served = [finish(own, own.schedule())[0] for _ in range(4)]
    assert quiet in served


def test_adapters_of_one_tenant_take_turns() -> None:
    own = scheduler(max_sequences=1)
    many = [sequence(adapter="aa", first=100 * n) for n in range(5)]
    one = sequence(adapter="bb")
    for each in (*many, one):
        own.add(each)
    served = [finish(own, own.schedule())[0] for _ in range(2)]
    assert served == [many[0], one]


def test_tokens_are_shared_evenly_between_tenants_whatever_their_requests_length() -> None:
    own = scheduler(max_sequences=1, tokens=4096)
    for number in range(200):
        own.add(sequence(490, tenant="long", first=number * 1000))
        own.add(sequence(40, tenant="short", first=500_000 + number * 100))
    spent = {"long": 0, "short": 0}
    for _ in range(100):
        (served,) = finish(own, own.schedule())
        spent[served.tenant] += served.max_len
    assert 0.7 < spent["long"] / spent["short"] < 1.4


def test_who_waited_too_long_goes_first() -> None:
    clock = Clock()
    own = scheduler(max_sequences=1, clock=clock)
    own.add(sequence(tenant="a"))
    (running,) = own.schedule()
    late = sequence(500, tenant="z")
    own.add(late)
    clock.now = 5.0
    own.add(sequence(tenant="a", first=50))
    clock.now = 11.0
    finish(own, [running])
    assert own.schedule()[0].sequence is late


def test_long_prompt_is_computed_in_pieces_beside_answers() -> None:
    own = scheduler(tokens=64)
    short, long = sequence(8), sequence(200, first=1000)
    own.add(short)
    own.note_computed(own.schedule())
    short.output_ids.append(1)
    own.add(long)
    sizes = []
    for _ in range(4):
        works = own.schedule()
        assert [work.sequence for work in works] == [short, long]
        sizes.append(works[1].num_tokens)
        own.note_computed(works)
        short.output_ids.append(1)
    assert sizes == [63, 63, 63, 11]


def test_same_beginning_is_computed_once_and_only_for_the_same_composition() -> None:
    own = scheduler(max_sequences=8, tokens=512)
    ids = tuple(range(100))
    sequences = [Sequence(prompt_ids=ids, composition=alone(adapter)) for adapter in ("aa", "aa", "bb", None)]
    own.add(sequences[0])
    own.note_computed(own.schedule())
    for other in sequences[1:]:
        own.add(other)
    own.schedule()
    assert [s.num_reused for s in sequences] == [0, 96, 0, 0]
    assert sequences[0].blocks[:3] == sequences[1].blocks[:3]
    assert sequences[0].blocks[3] != sequences[1].blocks[3]


def test_whole_prompt_in_the_cache_still_computes_its_last_token() -> None:
    own = scheduler(tokens=512)
    first = Sequence(prompt_ids=tuple(range(64)))
    own.add(first)
    finish(own, own.schedule())
    again = Sequence(prompt_ids=tuple(range(64)))
    own.add(again)
    (work,) = own.schedule()
    assert (work.start, work.stop) == (32, 64)


def test_latest_comer_gives_its_blocks_back_and_comes_first_again() -> None:
    own = scheduler(num_tokens=32 * 4, tokens=512)
    early, late = sequence(32), sequence(32, first=500)
    for each in (early, late):
        own.add(each)
        own.note_computed(own.schedule())
    for each in (early, late):
        each.output_ids += range(32 * 2)
        each.num_computed = each.num_tokens - 1
    early.blocks += own.cache.blocks.take(1) or []
    late.blocks += own.cache.blocks.take(1) or []
    works = own.schedule()
    assert [work.sequence for work in works] == [early]
    assert own.num_preempted == 1
    assert late.num_computed == 0
    assert own.waiting.next() is late


def test_removed_sequences_are_nowhere() -> None:
    own = scheduler(max_sequences=1)
    running, waiting = sequence(), sequence(first=100)
    own.add(running)
    own.schedule()
    own.add(waiting)
    own.remove(waiting)
    own.remove(running)
    assert not own.has_work
    assert own.cache.blocks.usage == 0
