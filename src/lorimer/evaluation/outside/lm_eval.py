"""lm-eval (EleutherAI's harness, 0.4.13): run against a server of ours, its samples read as tasks.

Its own hashes pair two runs: the item's (`doc_hash`), that of the prompt with shots and template (`prompt_hash`), and the target's.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorimer.errors import DataError, LorimerError, UsageError
from lorimer.evaluation.outside.environment import python_of, run
from lorimer.evaluation.outside.imported import ImportedItem, ImportedTask, number_of
from lorimer.evaluation.outside.lines import read_object, read_objects
from lorimer.evaluation.task import Kind
from lorimer.storage import digest_of

VARIABLE = "LORIMER_LM_EVAL"
PACKAGE = "'lm-eval[api]==0.4.13' torch==2.13.0 transformers"
SAMPLES, RESULTS = "samples_", "results_"
HASHES = ("doc_hash", "prompt_hash", "target_hash")
KINDS: Mapping[str, Kind] = {
    "generate_until": "answer",
    "multiple_choice": "choice",
    "loglikelihood": "choice",
    "loglikelihood_rolling": "text",
}
MAX_PROMPT = 4000  # characters of a prompt that are kept for a person to look at


@dataclass(frozen=True, slots=True, kw_only=True)
class LmEvalModel:
    """What lm-eval asks: its name of the model's kind, and the arguments of that kind."""

    kind: str
    arguments: Mapping[str, str]
    is_chat: bool = False


def served_model(
    base_url: str, model: str, tokenizer: Path, *, is_chat: bool = False, has_bos: bool = True, max_len: int = 2048
) -> LmEvalModel:
    """A model of a server of ours: `base_url` is the server's, without `/v1`; `tokenizer` the folder of the base.

    Tasks of log-likelihoods need text completions; through chat lm-eval generates alone. `has_bos` says whether a text of the base
    begins with a token of its own.
    """
    place = "chat/completions" if is_chat else "completions"
    arguments = {
        "model": model,
        "base_url": f"{base_url.rstrip('/').removesuffix('/v1')}/v1/{place}",
        "tokenizer": str(tokenizer.resolve()),
        "tokenizer_backend": "huggingface",
        "add_bos_token": str(has_bos),
        "max_length": str(max_len),
        "num_concurrent": "4",
        "max_retries": "3",
    }
    return LmEvalModel(kind="local-chat-completions" if is_chat else "local-completions", arguments=arguments, is_chat=is_chat)


def run_lm_eval(
    model: LmEvalModel,
    tasks: Sequence[str],
    output: Path,
    *,
    definitions: Path | None = None,
    num_shots: int | None = None,
    limit: int | None = None,
    key: str = "none",
    seconds: float | None = None,
    options: Sequence[str] = (),
) -> tuple[ImportedTask, ...]:
    """Run tasks of lm-eval to their end and read what it found; `definitions` is a folder of task files beside its own.

    Raises:
        UsageError: if LORIMER_LM_EVAL names no Python, or `output` holds results already.
        LorimerError: if it fails, or is not done after `seconds`.
        DataError: as `read_lm_eval`.
    """
    python, output = python_of(VARIABLE, PACKAGE), output.resolve()
    if list(output.rglob(f"{RESULTS}*.json")):
        raise UsageError(f"{str(output)!r} holds results of lm-eval already: read them, or name another folder")
    if wrong := [f"{name}={value}" for name, value in model.arguments.items() if "," in value]:
        raise UsageError(f"lm-eval takes no comma in an argument of its model: {wrong[0]!r}")
    command = [
        python, "-m", "lm_eval", "run", "--model", model.kind,
        "--model_args", ",".join(f"{name}={value}" for name, value in model.arguments.items()),
        "--tasks", ",".join(tasks), "--output_path", str(output), "--log_samples",
        *(["--include_path", str(definitions.resolve())] if definitions else []),
        *(["--num_fewshot", str(num_shots)] if num_shots is not None else []),
        *(["--limit", str(limit)] if limit is not None else []),
        *(["--apply_chat_template"] if model.is_chat else []),
        *options,
    ]  # fmt: skip
    log = output / "lm_eval.log"
    if not run(command, log=log, environment={"OPENAI_API_KEY": key}, seconds=seconds):
        raise LorimerError(f"lm-eval was not done after {seconds:.0f} s: give it more time, or a `limit` (its log: {str(log)!r})")
    return read_lm_eval(output)


def read_lm_eval(folder: Path) -> tuple[ImportedTask, ...]:
    """The tasks of one run that wrote its samples (`--log_samples --output_path`).

    Raises:
        DataError: if there is no such run or more than one, or a file is damaged or lacks items.
    """
    found = sorted(folder.rglob(f"{RESULTS}*.json"))
    if len(found) != 1:
        what = "no results" if not found else f"results of {len(found)} runs"
        raise DataError(f"{str(folder)!r} holds {what} of lm-eval: name the folder of one run, made with --log_samples and --output_path")
    results, stamp = read_object(found[0]), found[0].stem.removeprefix(RESULTS)
    samples = {
        path.stem.removeprefix(SAMPLES).removesuffix(f"_{stamp}"): path for path in found[0].parent.glob(f"{SAMPLES}*_{stamp}.jsonl")
    }
    counts = _mapping(results, "n-samples", found[0].name)
    if missing := sorted(counts.keys() - samples.keys()):
        raise DataError(f"{found[0].name} tells of {', '.join(missing)}, of which there are no samples: run it with --log_samples")
    if not samples:
        raise DataError(f"{found[0].name} tells of no task: run it with --tasks and --log_samples")
    return tuple(_read_task(name, path, results, counts.get(name)) for name, path in sorted(samples.items()))


def _read_task(name: str, path: Path, results: Mapping[str, Any], count: Any) -> ImportedTask:
    config = _mapping(_mapping(results, "configs", path.name), name, path.name)
    by_key, turns = dict[str, ImportedItem](), Counter[tuple[str, str]]()
    for number, sample in read_objects(path):
        item, own = _read_item(sample, f"{path.name}, line {number}")
        turns[item.key, own] += 1
        key = f"{item.key}:{turns[item.key, own]}"  # data may hold an item twice
        by_key[key] = _joined(key, item, by_key.get(key))
    wanted = count.get("effective") if isinstance(count, Mapping) else None
    if wanted is not None and wanted != len(by_key):
        raise DataError(
            f"{path.name} holds {len(by_key)} items, its results tell of {wanted}: it was cut off, or asks one twice; run it again"
        )
    if not by_key:
        raise DataError(f"{path.name} holds no items: run it again")
    version = _mapping(results, "versions", path.name).get(name)
    shots = _mapping(results, "n-shot", path.name).get(name)
    conditions = {
        "version": str(version),
        "num_shots": str(shots),
        "chat_template": str(results.get("chat_template_sha")),
        "system_instruction": str(results.get("system_instruction_sha")),
        "generation": digest_of(config.get("generation_kwargs"))[:12] if _is_plain(config.get("generation_kwargs")) else "unknown",
    }
    about = {name: str(results.get(name)) for name in ("model_name", "lm_eval_version", "transformers_version")}
    about["task_hash"] = str(_mapping(results, "task_hashes", path.name).get(name))
    kind = KINDS.get(str(config.get("output_type")), "answer")
    return ImportedTask(source="lm-eval", name=name, kind=kind, conditions=conditions, items=tuple(by_key.values()), about=about)


def _read_item(sample: Mapping[str, Any], where: str) -> tuple[ImportedItem, str]:
    """One line, and the name of one of its scores."""
    if lacking := [name for name in (*HASHES, "metrics", "arguments") if name not in sample]:
        raise DataError(f"{where} has no {', '.join(lacking)}: it was written by another version of lm-eval than those known here (0.4.13)")
    metrics, step = sample["metrics"], str(sample.get("filter", "none"))
    if not isinstance(metrics, list) or not metrics or not all(isinstance(metric, str) for metric in metrics):
        raise DataError(f"{where} names no metrics: the task scores nothing")
    names = {metric: metric if step == "none" else f"{metric}@{step}" for metric in metrics}
    scores = {names[metric]: number_of(sample.get(metric)) for metric in metrics}
    unscored = [metric for metric in metrics if scores[names[metric]] is None]
    item = ImportedItem(
        key=":".join(str(sample[name])[:16] for name in HASHES),
        prompt=_prompt_of(sample["arguments"]),
        target=str(sample.get("target", ""))[:MAX_PROMPT],
        answer=_answer_of(sample),
        scores=scores,
        explanation=f"lm-eval gave no number for {', '.join(unscored)}" if unscored else "",
    )
    return item, next(iter(scores))


def _joined(key: str, item: ImportedItem, before: ImportedItem | None) -> ImportedItem:
    """An answer, with what another filter said of it."""
    return ImportedItem(
        key=key,
        prompt=item.prompt,
        target=item.target,
        answer=item.answer,
        scores={**(before.scores if before else {}), **item.scores},
        explanation="; ".join(filter(None, (before.explanation if before else "", item.explanation))),
    )


def _prompt_of(arguments: Any) -> str:
    """The first request's context."""
    try:
        return str(arguments["gen_args_0"]["arg_0"])[-MAX_PROMPT:]
    except (LookupError, TypeError):
        return ""


def _answer_of(sample: Mapping[str, Any]) -> str:
    """What was generated, before any filter; for choices the log-likelihood of each, as a JSON list."""
    found = sample.get("resps")
    answers = [_innermost(one) for one in found] if isinstance(found, list) else []
    if answers and all(isinstance(answer, list) and len(answer) == 2 for answer in answers):
        try:
            return json.dumps([float(answer[0]) for answer in answers])
        except (TypeError, ValueError):
            return str(answers)[:MAX_PROMPT]
    return str(answers[0] if len(answers) == 1 else found)[:MAX_PROMPT]


def _innermost(value: Any) -> Any:
    """What is left of lists of one thing."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _mapping(value: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    found = value.get(name)
    if not isinstance(found, Mapping):
        raise DataError(
            f"{where}: its run tells nothing of {name!r}: it was written by another version of lm-eval than those known here (0.4.13)"
        )
    return found


def _is_plain(value: Any) -> bool:
    """Whether a digest can be taken of it."""
    try:
        digest_of(value)
    except (TypeError, ValueError):
        return False
    return True
