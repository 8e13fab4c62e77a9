"""How long answers take, one at a time and as they are served: for the report card, beside what they are worth."""

import math
import statistics
import time

from lorimer.evaluation.evaluate import answer_len, prompt_ids_of
from lorimer.evaluation.pages.report_card import ServingCost
from lorimer.evaluation.task import Task
from lorimer.inference.composition import Composition
from lorimer.inference.engine import Engine, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence

NUM_TIMED = 10


def time_answers(engine: Engine, task: Task, composition: Composition) -> ServingCost:
    """Ask the first few prompts of a task, one after the other; prompts are computed whole, whatever was asked before."""
    params, latencies, num_tokens = SamplingParams(max_tokens=answer_len(engine, task)), list[float](), 0
    for sample in task.samples[:NUM_TIMED]:
        sequence = Sequence(prompt_ids=prompt_ids_of(engine, task, sample), params=params, composition=composition, wants_state=True)
        start = time.perf_counter()
        for _ in generate(engine, [sequence]):
            latencies.append(time.perf_counter() - start)
        num_tokens += sequence.num_tokens
    return ServingCost(
        num_answers=len(latencies),
        num_tokens=num_tokens,
        seconds=sum(latencies),
        latency_seconds=statistics.median(latencies),
        latency_p95_seconds=sorted(latencies)[math.ceil(0.95 * len(latencies)) - 1],
    )
