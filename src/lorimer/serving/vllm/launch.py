"""How vLLM has to be started to stand behind the gateway: flags from the registry and the base, our plugin, a key of its own."""

import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lorimer
from lorimer.config import home
from lorimer.errors import ConfigError, LorimerError, UsageError
from lorimer.registry.records import AdapterVersion
from lorimer.serving.vllm.plugin import KEY_VARIABLE, MANIFEST_VARIABLE, PARENT_VARIABLE
from lorimer.storage import open_log, write_text

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those vLLM allows (vllm 0.32, config/lora.py, MaxLoRARanks). Every slot is padded to it, so the smallest that will do is the fastest."""
DEFAULT_RANK = 16  # where nothing is registered yet
MAX_LORAS_AT_ONCE = 16  # slots are allocated whether or not they are used
CPU_LORA_BYTES = 2_000_000_000  # as the embedded engine's budget for adapters
OURS = ("--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--lora-modules", "--middleware", "--enable-lora",
        "--no-enable-lora", "--allow-remote-code", "--trust-remote-code", "--api-server-count")  # fmt: skip
"""Flags an operator may not give: each would open a way round the gateway, or serve something else than it says."""
PLUGIN = "lorimer"
START_SECONDS = 1800.0  # compiling for a GPU, or on a busy machine
STOP_SECONDS = 20.0
MAX_PAUSE_SECONDS = 60.0  # before it is started again


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRALimits:
    """How much room for adapters vLLM is given."""

    max_rank: int
    max_loras: int
    """In one batch."""
    max_cpu_loras: int
    """In memory."""


def limits_for(versions: Iterable[AdapterVersion], base_digest: str, *, max_sequences: int) -> LoRALimits:
    """From what is registered for a base.

    Raises:
        UsageError: if an adapter's rank is more than vLLM takes.
    """
    own = [version for version in versions if version.base_digest == base_digest]
    largest = max((version.rank for version in own), default=DEFAULT_RANK)
    if largest > RANKS[-1]:
        over = next(version for version in own if version.rank == largest)
        raise UsageError(f"{over.id} has rank {largest}, vLLM takes up to {RANKS[-1]}: serve it with the embedded engine")
    count = len({version.digest for version in own}) or 1
    max_loras = min(count, max_sequences, MAX_LORAS_AT_ONCE)
    num_bytes = max((version.num_bytes for version in own), default=0) or 1
    fitting = CPU_LORA_BYTES // num_bytes
    return LoRALimits(
        max_rank=next(rank for rank in RANKS if rank >= largest),
        max_loras=max_loras,
        max_cpu_loras=max(max_loras, min(count, fitting)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One way to start vLLM."""

    python: str
    port: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    """What is set beside what the operator has set; without the key."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """In the environment and not on the command line, which everybody on the machine can read."""

    @property
    def url(self) -> str:
        """Where it will answer."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def command(self) -> list[str]:
        """The process."""
        return [self.python, "-m", "vllm.entrypoints.openai.api_server", *self.arguments]

    def to_shell(self) -> str:
        """For an operator who starts it, with the key taken from a variable of his own."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        return " ".join([*variables, f'{KEY_VARIABLE}="$LORIMER_VLLM_KEY"', shlex.join(self.command)])


def plan_launch(
    *,
    python: str,
    base: Path,
    base_digest: str,
    versions: Collection[AdapterVersion],
    dtype: str,
    max_sequences: int,
    max_len: int | None = None,
    port: int = 0,
    options: Sequence[str] = (),
) -> Launch:
    """The command for a base and what is registered for it; `options` are vLLM's own, for the machine it runs on.

    Raises:
        UsageError: if an option would undo what keeps clients out, or a rank is more than vLLM takes.
    """
    wrong = [option for option in options if option.startswith("--") and option.split("=")[0].replace("_", "-") in OURS]
    if wrong:
        raise UsageError(f"{wrong[0].split('=')[0]!r} is decided here, so that clients cannot go round the gateway: leave it out")
    limits = limits_for(versions, base_digest, max_sequences=max_sequences)
    arguments = [
        "--model", str(base), "--served-model-name", base_digest, "--host", "127.0.0.1", "--port", str(port or free_port()),
        "--dtype", dtype, "--max-num-seqs", str(max_sequences), "--generation-config", "vllm",
        "--structured-outputs-config", json.dumps({"backend": "guidance"}),
        "--enable-lora", "--max-lora-rank", str(limits.max_rank), "--max-loras", str(limits.max_loras),
        "--max-cpu-loras", str(limits.max_cpu_loras), "--middleware", "lorimer.serving.vllm.plugin.Gate", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if max_len is not None:
        arguments += ["--max-model-len", str(max_len)]
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # or resolvers are not asked; the gate closes the route that it opens
        "VLLM_PLUGINS": PLUGIN,  # and no other
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        MANIFEST_VARIABLE: str(manifest_path(base_digest)),
        "PYTHONPATH": str(prepare_plugin()),
    }
    return Launch(
        python=python, port=int(arguments[arguments.index("--port") + 1]), arguments=(*arguments, *options), environment=environment
    )


def manifest_path(base_digest: str) -> Path:
    """Where the gateway lists what vLLM may serve on a base."""
    return home() / "vllm" / f"{base_digest[:16]}.json"


def prepare_plugin() -> Path:
    """A folder that puts this package, its entry point and nothing else of this environment before vLLM: nothing is installed there."""
    folder = home() / "vllm" / "plugin"
    about = folder / f"lorimer-{lorimer.__version__}.dist-info"
    write_text(about / "METADATA", f"Metadata-Version: 2.1\nName: lorimer\nVersion: {lorimer.__version__}\n")
    write_text(about / "entry_points.txt", f"[vllm.general_plugins]\n{PLUGIN} = lorimer.serving.vllm.plugin:register\n")
    link, package = folder / "lorimer", Path(str(lorimer.__file__)).resolve().parent
    if not link.is_symlink() or link.resolve() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package)
    return folder


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Supervisor:
    """A vLLM of our own: started, started again when it ends, and ended with us."""

    def __init__(self, launch: Launch, *, log: Path, is_ready: Callable[[], bool]) -> None:
        self.launch, self.log, self.is_ready = launch, log, is_ready
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vllm", daemon=True)

    @property
    def pid(self) -> int | None:
        """Of its process, where there is one."""
        return None if self._process is None else self._process.pid

    def start(self, *, seconds: float = START_SECONDS) -> None:
        """Start it and wait until it answers.

        Raises:
            ConfigError: if there is no such Python.
            LorimerError: if it ends, or does not answer in time; with the end of its log.
        """
        self._spawn()
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                what = f"ended with {self._process.returncode}" if time.monotonic() <= deadline else f"did not answer in {seconds:.0f} s"
                raise LorimerError(f"vLLM {what}; {str(self.log)!r} ends with: {_last_words(self.log)}")
            time.sleep(0.5)
        self._thread.start()

    def stop(self) -> None:
        """End it, and all its processes."""
        self._is_over.set()
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _spawn(self) -> None:
        own = {KEY_VARIABLE: self.launch.key, PARENT_VARIABLE: str(os.getpid())}
        environment = {**os.environ, **self.launch.environment, **own}
        with open_log(self.log) as file:
            try:
                self._process = subprocess.Popen(
                    self.launch.command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
            except OSError as exc:
                raise ConfigError(f"{self.launch.python!r} cannot be run ({exc.strerror}): give the Python of vLLM's environment") from exc

    def _watch(self) -> None:
        """Start it again whenever it ends, each time in a row after a longer pause."""
        pause = 1.0
        while not self._is_over.is_set():
            assert self._process is not None
            begun = time.monotonic()
            while self._process.poll() is None:
                if self._is_over.wait(0.5):
                    return
            pause = 1.0 if time.monotonic() - begun > 10 * MAX_PAUSE_SECONDS else min(2 * pause, MAX_PAUSE_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # what is left of it
            if not self._is_over.wait(pause):
                with contextlib.suppress(LorimerError):
                    self._spawn()


@contextlib.contextmanager
def supervised(supervisor: Supervisor) -> Iterator[Supervisor]:
    """A vLLM of our own, for as long as the block lasts.

    Raises:
        ConfigError, LorimerError: as `Supervisor.start`.
    """
    try:
        supervisor.start()
        yield supervisor
    finally:
        supervisor.stop()


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "nothing"
    return " | ".join(lines[-3:])[-600:]
