"""`lorimer serve` and `lorimer chat`, on a tiny base in Hugging Face format."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import typer
from typer.testing import CliRunner

from fakes import random_lora, save_tiny_base
from lorimer.cli.chat import chat
from lorimer.cli.serve import serve
from lorimer.database import open_database
from lorimer.errors import ConfigError, NotFoundError, UnavailableError, UsageError
from lorimer.model.adapter import Lock, save_adapter
from lorimer.model.base import load_base
from lorimer.registry.records import NewVersion
from lorimer.registry.registry import Registry
from lorimer.serving.grants import Grant
from lorimer.serving.keys import Keys
from lorimer.serving.server import background_server, open_app

app = typer.Typer()
app.command()(serve)
app.command()(chat)
PROGRAM = "import sys; from test_serve import app; app(sys.argv[1:], standalone_mode=False)"


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A tiny base with an adapter registered for it."""
    folder = tmp_path / "base"
    save_tiny_base(folder)
    base = load_base(str(folder))
    lora = random_lora(base, seed=1)
    digests = {"base_digest": base.digest, "template_digest": base.renderer.template_digest, "dataset_digest": "d" * 64}
    save_adapter(lora, tmp_path / "run", base, Lock(base_name=base.name, run_id="run-1", **digests))
    lineage = {"base_name": base.name, "dataset_name": "tickets", "run_id": "run-1", **digests}
    new = NewVersion(name="helpdesk", source=tmp_path / "run", rank=4, alpha=8.0, num_parameters=lora.num_parameters, **lineage)
    Registry(open_database()).register(new)
    return folder


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`lorimer serve` as a process; its base is found through the adapter."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path]), "COLUMNS": "300"}
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def server(base_folder: Path) -> Iterator[subprocess.Popen[str]]:
    with serving() as process:
        yield process


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_serve_says_what_can_be_asked_and_ends_with_one_line(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    first = server.stdout.readline()
    assert first.startswith("Serving ")
    url = first.split(" on ")[1].split()[0]
    assert b'"status":"ok"' in urlopen(f"{url}/healthz").read()
    lines = [server.stdout.readline() for _ in range(3)]
    assert [line.split()[0] for line in lines] == ["helpdesk", "helpdesk@v1", "Try:"]
    assert f"curl {url}/v1/chat/completions" in lines[2]
    server.send_signal(signal.SIGINT)
    output, errors = server.communicate(timeout=20)
    assert (server.returncode, output.strip()) == (0, "Stopped.")
    assert "Traceback" not in errors


def test_dedicated_server_merges_tells_what_that_changes_and_serves_nothing_else(base_folder: Path) -> None:
    with serving("--dedicated", "helpdesk@v1") as process:
        assert process.stdout is not None
        merged, first, *names = [process.stdout.readline() for _ in range(4)]
        assert merged.startswith(f"Merged helpdesk@v1 into {base_folder}. Beside the adapter unmerged: over ")
        assert "the likeliest token is the same at " in merged
        assert [name.split()[0] for name in names] == ["helpdesk", "helpdesk@v1"]
        url = first.split(" on ")[1].split()[0]
        with pytest.raises(NotFoundError, match="dedicated to 'helpdesk@v1'"):
            run("chat", "base", "--message", "hi", "--url", url)
        assert len(run("chat", "helpdesk", "--message", "hi", "--url", url)) > 10


def test_chat_answers_once_in_process_and_through_a_server(base_folder: Path) -> None:
    here = run("chat", "helpdesk", "--message", "hi", "--system", "Be brief.")
    with background_server(open_app(load_base(str(base_folder)))) as url:
        there = run("chat", "helpdesk", "--message", "hi", "--system", "Be brief.", "--url", url)
    assert len(here) > 10
    assert here == there


def test_chat_reads_lines_until_the_end(base_folder: Path, tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "brief", seed=16)  # whose answers are a few letters long: two of them fit in what it can take in
    with background_server(open_app(load_base(str(tmp_path / "brief")))) as url:
        result = CliRunner().invoke(app, ["chat", "base", "--url", url], input="no\n\nyes\n", catch_exceptions=False)
        once = run("chat", "base", "--message", "no", "--url", url)
    assert result.stdout.startswith(once)
    assert len(result.stdout) > len(once)


def test_address_others_reach_wants_a_key_or_the_operators_word(base_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"'0\.0\.0\.0' can be reached from other machines, .*`lorimer keys create NAME`.*`--no-keys`"):
        run("serve", "--host", "0.0.0.0", "--port", "0")


def test_chat_shows_its_key(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Keys(open_database()).create("acme", tenant="acme", grant=Grant())
    with background_server(open_app(load_base(str(base_folder)))) as url:
        with pytest.raises(UsageError, match="no API key was shown"):
            run("chat", "helpdesk", "--message", "hi", "--url", url)
        monkeypatch.setenv("LORIMER_API_KEY", new.text)
        there = run("chat", "helpdesk", "--message", "hi", "--url", url)
    monkeypatch.delenv("LORIMER_API_KEY")
    assert run("chat", "helpdesk", "--message", "hi") == there  # on a server of its own, which asks for none


def test_unknown_names_are_one_sentence(base_folder: Path) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'helpdesk'"):
        run("chat", "helpdsk", "--message", "hi")
    with pytest.raises(NotFoundError, match="is neither a shipped base nor a folder"):
        run("serve", "--base", "no-such-base")
    with pytest.raises(UsageError, match="is not a server's address"):
        run("chat", "helpdesk", "--message", "hi", "--url", "localhost")


def test_how_to_start_vllm_is_printed_for_a_shell(base_folder: Path) -> None:
    out = run(
        "serve", "--backend", "vllm", "--print-command", "--vllm-python", "/opt/vllm/bin/python", "--", "--gpu-memory-utilization", "0.5"
    )
    (line,) = out.strip().splitlines()
    assert 'VLLM_API_KEY="$LORIMER_VLLM_KEY" /opt/vllm/bin/python -m vllm.entrypoints.openai.api_server --model ' in line
    assert "--max-lora-rank 8 --max-loras 1" in line
    assert line.endswith("--gpu-memory-utilization 0.5")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vllm-url", "http://127.0.0.1:9"], "add `--backend vllm`"),
        (["--print-command"], "add `--backend vllm`"),
        (["--backend", "vllm", "--vllm-url", "http://127.0.0.1:9", "--", "--seed", "1"], "come too late"),
        (["--backend", "vllm", "--print-command", "--", "--api-key", "x"], "'--api-key' is decided here"),
    ],
)
def test_options_that_contradict_each_other_are_refused(base_folder: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run("serve", *arguments)


def test_a_vllm_that_is_not_there_is_one_sentence(base_folder: Path) -> None:
    with pytest.raises(UnavailableError, match="vLLM does not answer"):
        run("serve", "--backend", "vllm", "--vllm-url", "http://127.0.0.1:9", "--port", "0")
    with pytest.raises(ConfigError, match="give the Python of vLLM's environment"):
        run("serve", "--backend", "vllm", "--vllm-python", "/no/such/python", "--port", "0")
