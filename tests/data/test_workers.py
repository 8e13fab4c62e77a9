"""Other processes answer in order; what goes wrong in one is said here, and none is left behind."""

import operator

import pytest

from lorimer.data.workers import CHUNKS_BEFORE_WORKERS, Workers
from lorimer.errors import LorimerError


def test_answers_come_in_the_order_of_the_chunks() -> None:
    with Workers(3, operator.mul) as workers:
        assert list(workers.apply(range(40), 3)) == [3 * number for number in range(40)]
        assert list(workers.apply(["a", "b"], 2)) == ["aa", "bb"]  # the next source, with another setup
        processes = [worker._process for worker in workers._all]
    assert len(processes) == 3
    assert all(process.returncode == 0 for process in processes)


def test_few_chunks_start_no_process() -> None:
    with Workers(3, operator.mul) as workers:
        assert list(workers.apply(range(CHUNKS_BEFORE_WORKERS), 3)) == [3 * number for number in range(CHUNKS_BEFORE_WORKERS)]
        assert workers._all == []


def test_what_the_work_raises_is_raised_here() -> None:
    with Workers(2, operator.truediv) as workers, pytest.raises(TypeError, match="unsupported operand"):
        list(workers.apply([*[1] * 10, "x"], 3))


def test_process_that_dies_is_one_sentence() -> None:
    with Workers(2, operator.mul) as workers:
        answers = workers.apply(range(200), 3)
        first = [next(answers) for _ in range(10)]
        for worker in workers._all:
            worker._process.kill()
        with pytest.raises(LorimerError, match=r"ended with code -9 \(perhaps it was out of memory\)"):
            list(answers)
    assert first == [3 * number for number in range(10)]
