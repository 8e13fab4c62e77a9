"""garak (NVIDIA's scanner, 0.17.1): its probes put to a server of ours, one process and one report a probe.

A report that is whole is not made again, so that a scan goes on where it stopped. What a probe had no time for is unscored.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorimer.errors import LorimerError, UsageError
from lorimer.evaluation.outside.environment import last_words, python_of, run
from lorimer.evaluation.outside.garak_report import ASKED, HITLOG, REPORT, UNFINISHED, has_answers, read_garak, settings_of
from lorimer.evaluation.outside.imported import ImportedTask
from lorimer.evaluation.outside.lines import read_object
from lorimer.storage import write_text

VARIABLE = "LORIMER_GARAK"
PACKAGE = "garak==0.17.1 torch==2.13.0 'litellm<1.106'"
"""pip finds no end among the releases of what newer ones of litellm need."""
PROBE_SECONDS = 600.0
NUM_PROMPTS = 256
"""garak's own cap."""
MAX_TOKENS = 150


def run_garak(
    base_url: str,
    model: str,
    probes: Sequence[str],
    output: Path,
    *,
    key: str = "none",
    num_answers: int = 1,
    max_tokens: int = MAX_TOKENS,
    seed: int = 1,
    limit: int = NUM_PROMPTS,
    num_at_once: int = 4,
    seconds_a_probe: float = PROBE_SECONDS,
    options: Sequence[str] = (),
) -> tuple[ImportedTask, ...]:
    """Put probes to a model of a server (`base_url` without `/v1`), each for so long at most, and read what was found.

    `probes` are garak's names without their first word, `module` or `module.Class`. `limit` is garak's soft cap: probes with more prompts
    draw so many of them, by the seed; a few do not know it. A probe whose report is whole is not asked again.

    Raises:
        UsageError: if LORIMER_GARAK names no Python, no probe is named, or `output` holds a scan that was asked differently.
        LorimerError: if garak fails, or the server answers nothing.
        DataError: as `read_garak`.
    """
    python = python_of(VARIABLE, PACKAGE)
    if not probes:
        raise UsageError("name at least one probe of garak: `python -m garak --list_probes` lists them, without their first word")
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    # A seed goes with every request: with it, all answers to a prompt would be the same one.
    unsaid = ["n", "stop", "top_p", "frequency_penalty", "presence_penalty", *(["seed"] if num_answers > 1 else [])]
    generator = {
        "uri": f"{base_url.rstrip('/').removesuffix('/v1')}/v1",
        "max_tokens": max_tokens,
        "temperature": 0.0 if num_answers == 1 else 1.0,
        "suppressed_params": unsaid,
    }
    asked = {
        "system": {"parallel_attempts": num_at_once if num_at_once > 1 else False, "narrow_output": True},
        "run": {"seed": seed, "generations": num_answers, "soft_probe_prompt_cap": limit},
        "plugins": {
            "target_type": "openai.OpenAICompatible",
            "target_name": model,
            "generators": {"openai": {"OpenAICompatible": generator}},
        },
    }
    _check_same(output, asked)
    write_text(output / ASKED, json.dumps(asked, indent=2))
    told = {
        "OPENAICOMPATIBLE_API_KEY": key,
        "TQDM_DISABLE": "1",
        **{f"XDG_{name}_HOME": str(output / f".{name.lower()}") for name in ("CONFIG", "DATA", "CACHE")},
    }
    for probe in probes:
        report, log = output / f"{probe}{REPORT}", output / f"{probe}.log"
        if has_answers(report):
            continue
        for left in (report, output / f"{probe}{HITLOG}", output / f"{probe}{UNFINISHED}"):
            left.unlink(missing_ok=True)
        command = [
            python, "-m", "garak", "--config", str(output / ASKED), "--spec", f"probes.{probe}", "--report_prefix", str(output / probe),
            *options,
        ]  # fmt: skip
        is_in_time = run(command, log=log, environment=told, seconds=seconds_a_probe)
        if is_in_time and not has_answers(report):  # it ends with status 0 all the same
            raise LorimerError(
                f"garak has no answers to {probe} from {model!r} at {generator['uri']}: it is not served there, or see what garak said: "
                f"{last_words(log)}"
            )
        if not is_in_time:
            if not report.exists():
                raise LorimerError(f"garak asked nothing of {probe} in {seconds_a_probe:.0f} s: give it more time: {last_words(log)}")
            report.rename(output / f"{probe}{UNFINISHED}")
    return read_garak(output)


def _check_same(output: Path, asked: Mapping[str, Any]) -> None:
    """A scan goes on as it began; where the server listens may change."""
    if not (output / ASKED).exists() or not any(output.glob(f"*{REPORT}")):
        return
    own, before = settings_of(asked), settings_of(read_object(output / ASKED))
    if unlike := [
        f"{name} {before.get(name)} and not {own.get(name)}" for name in sorted({*own, *before}) if own.get(name) != before.get(name)
    ]:
        raise UsageError(f"{str(output)!r} holds a scan with {', '.join(unlike)}: name another folder, or ask as before")
