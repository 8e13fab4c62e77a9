"""A harness in an environment of its own: its Python is named by a variable, it runs as a process, and ends when its time is over."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorimer.errors import LorimerError, UsageError

LAST_LINES = 12
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""Nothing is fetched: what is measured has to be here already."""


def python_of(variable: str, package: str) -> str:
    """The Python of a harness's environment.

    Raises:
        UsageError: saying how to make one.
    """
    python = os.environ.get(variable, "")
    if not python:
        raise UsageError(
            f"{variable} is not set: make an environment for it (python3 -m venv /opt/outside && /opt/outside/bin/pip install {package}) "
            f"and name its Python: {variable}=/opt/outside/bin/python"
        )
    if not os.access(python, os.X_OK):
        raise UsageError(f"{variable} names {python!r}, which cannot be run: name the Python of an environment that has {package}")
    return os.path.abspath(python)  # not resolved: an environment's Python is a link, known by where it lies


def run(command: Sequence[str], *, log: Path, environment: Mapping[str, str], seconds: float | None = None) -> bool:
    """Run a harness, its output in a file; returns whether it came to its end within `seconds`, after which all of it is ended.

    Raises:
        LorimerError: if it fails, with its last words.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    told = {**os.environ, **OFFLINE, **environment}
    told.pop("PYTHONPATH", None)  # its packages are its own
    told["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1,localhost")))
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(command),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=told,
            cwd=log.parent,  # where no file of ours can be taken for one of its modules
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
    if code != 0:
        raise LorimerError(f"{Path(command[0]).name} {' '.join(command[1:4])} ended with status {code}: {last_words(log)}")
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and its children, if any are left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(log: Path) -> str:
    """The end of what a harness said, on one line."""
    lines = COLOURS.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines()
    said = " | ".join(line.strip() for line in lines[-LAST_LINES:] if line.strip())
    return f"{said[-1500:]} (all of it in {str(log)!r})" if said else "it said nothing"
