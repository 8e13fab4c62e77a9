"""How vLLM is started: flags from the registry, our plugin, a key that nobody sees; and that it is kept running."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

import pytest

from lorimer.errors import ConfigError, LorimerError, UsageError
from lorimer.registry.records import AdapterVersion
from lorimer.serving.vllm.launch import Launch, Supervisor, limits_for, manifest_path, plan_launch, prepare_plugin, supervised

BASE = "b" * 64
VERSION = AdapterVersion(
    name="a",
    version=1,
    digest="0" * 64,
    base_name="b",
    base_digest=BASE,
    dataset_name="d",
    dataset_digest="d",
    run_id="r",
    rank=8,
    alpha=8,
    num_parameters=1,
    num_bytes=15_000_000,
    path=Path("/a"),
    template_digest="t",
    report_digest=None,
    gate_digest=None,
    gate_verdict=None,
    created_at="2026-01-01",
    created_by="me",
)


def versions_of(*ranks: int, base_digest: str = BASE) -> list[AdapterVersion]:
    return [replace(VERSION, version=at + 1, digest=f"{at:064x}", rank=rank, base_digest=base_digest) for at, rank in enumerate(ranks)]


@pytest.mark.parametrize(
    ("ranks", "wanted"),
    [
        ((), (16, 1, 1)),
        ((1,), (1, 1, 1)),
        ((4, 8), (8, 2, 2)),
        ((4, 9), (16, 2, 2)),
        ((33,), (64, 1, 1)),
        ((257,), (320, 1, 1)),
        ((512, 8), (512, 2, 2)),
        ((8,) * 12, (8, 8, 12)),
        ((8,) * 1000, (8, 8, 133)),
    ],
)
def test_limits_are_those_of_what_is_registered(ranks: tuple[int, ...], wanted: tuple[int, int, int]) -> None:
    limits = limits_for([*versions_of(*ranks), *versions_of(500, base_digest="c" * 64)], BASE, max_sequences=8)
    assert (limits.max_rank, limits.max_loras, limits.max_cpu_loras) == wanted


def test_the_same_bytes_under_two_names_take_one_place() -> None:
    assert limits_for([VERSION, replace(VERSION, name="other")], BASE, max_sequences=8).max_loras == 1


def test_a_rank_vllm_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="a@v1 has rank 513, vLLM takes up to 512"):
        limits_for(versions_of(513), BASE, max_sequences=8)


def plan(*options: str, python: str = "python") -> Launch:
    return plan_launch(
        python=python,
        base=Path("/b"),
        base_digest=BASE,
        versions=versions_of(8),
        dtype="bfloat16",
        max_sequences=4,
        max_len=99,
        options=options,
    )


def test_the_command_can_be_run_by_a_shell_and_shows_no_key() -> None:
    launch = plan("--gpu-memory-utilization", "0.5")
    words = shlex.split(launch.to_shell())
    assert 'VLLM_API_KEY="$LORIMER_VLLM_KEY"' in launch.to_shell()
    assert launch.key not in launch.to_shell() + repr(launch)
    assert len(launch.key) >= 40
    start = words.index("python")
    assert words[start:] == launch.command
    told = dict(word.split("=", 1) for word in words[:start])
    assert (told["VLLM_PLUGINS"], told["LORIMER_VLLM_MANIFEST"]) == ("lorimer", str(manifest_path(BASE)))
    line = " ".join(launch.command)
    for flag in ("--host 127.0.0.1", "--max-lora-rank 8", "--max-num-seqs 4", "--max-model-len 99", f"--served-model-name {BASE}", "Gate"):
        assert flag in line
    assert launch.command[-2:] == ["--gpu-memory-utilization", "0.5"]
    assert launch.url.endswith(launch.command[launch.command.index("--port") + 1])


@pytest.mark.parametrize("option", ["--host", "--api-key=x", "--lora-modules", "--middleware", "--enable_lora", "--trust-remote-code"])
def test_options_that_would_open_a_way_round_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match="decided here"):
        plan(option, "x")


def test_the_plugin_folder_holds_our_package_and_its_entry_point_alone() -> None:
    folder = prepare_plugin()
    assert prepare_plugin() == folder
    assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == ["lorimer", "lorimer"]
    (found,) = distributions(path=[str(folder)])
    (entry,) = found.entry_points
    assert (entry.group, entry.name, entry.value) == ("vllm.general_plugins", "lorimer", "lorimer.serving.vllm.plugin:register")
    assert (folder / "lorimer" / "serving" / "vllm" / "plugin.py").is_file()


def supervisor(tmp_path: Path, program: str, *, is_ready: Callable[[], bool]) -> Supervisor:
    """One of a process that is not vLLM: its arguments are thrown away."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c {shlex.quote(program)}\n")
    python.chmod(0o755)
    return Supervisor(plan(python=str(python)), log=tmp_path / "log", is_ready=is_ready)


def test_what_ends_is_started_again_and_ends_with_us(tmp_path: Path, wait_until: Callable[..., bool]) -> None:
    started = tmp_path / "started"
    program = (
        f"import os, time; open({str(started)!r}, 'a').write(os.environ['VLLM_API_KEY'] + ' ' + str(os.getpid()) + '\\n'); time.sleep(600)"
    )
    watched = supervisor(tmp_path, program, is_ready=started.is_file)
    with supervised(watched):
        assert wait_until(lambda: started.read_text().count("\n") == 1)
        first = watched.pid
        assert first is not None
        os.kill(first, 9)
        assert wait_until(lambda: started.read_text().count("\n") == 2, 60)
        key, pid = started.read_text().split("\n")[1].split()
        assert key == watched.launch.key
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    assert wait_until(lambda: not _is_running(int(pid)))


def _is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return state not in ("", "Z")


def test_what_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(LorimerError, match=r"vLLM ended with 3; .* ends with: no such model"):
        supervisor(tmp_path, "import sys; print('no such model'); sys.exit(3)", is_ready=lambda: False).start()
    slow = supervisor(tmp_path, "import time; time.sleep(600)", is_ready=lambda: False)
    before = time.monotonic()
    with pytest.raises(LorimerError, match="did not answer in 1 s"):
        slow.start(seconds=1)
    assert time.monotonic() - before < 60
    with pytest.raises(ConfigError, match=r"cannot be run .* give the Python of vLLM's environment"):
        Supervisor(plan(python="/no/such/python"), log=tmp_path / "log", is_ready=lambda: False).start()
