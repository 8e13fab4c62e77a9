"""Every command has help with an example; wrong usage is one line and exit code 2."""

import subprocess
import sys

import pytest

from lorimer.cli.main import run

COMMANDS = ["quickstart", "init", "plan", "train", "evaluate", "serve", "chat", "doctor", "data curate", "adapters promote", "keys create"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert "Example: lorimer" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "RECIPE"),
        (["train", "x.yaml", "--fast"], "--fast"),
        (["adapters", "show", "ghost"], "ghost"),
        (["evaluate", "ghost"], "ghost"),
        (["data", "show", "ghost"], "ghost"),
        (["keys", "revoke", "ghost"], "ghost"),
        (["keys", "create"], "--tenant"),
        (["serve", "--host", "0.0.0.0"], "lorimer keys create"),
        (["init", "--use-case", "magic"], "magic"),
        (["suites", "run", "helm", "m", "--tasks", "t", "--output", "o"], "helm"),
        (["suites", "run", "lm-eval", "m", "--tasks", "t", "--output", "o", "--seconds", "5"], "--seconds is for garak"),
        (["suites", "run", "garak", "m", "--tasks", "t", "--output", "o", "--base", "b"], "--base is for lm-eval"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("lorimer: ")
    assert words.lower() in error.lower()
    assert len(error.splitlines()) == 1


def test_help_never_loads_torch() -> None:
    code = (
        "import sys; from lorimer.cli.main import run; run(['--help']); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_doctor_tells_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] in {"bfloat16", "float32"}
    assert found["bf16_flops_per_second"] > 0
    assert found["home_is_writable"] is True
