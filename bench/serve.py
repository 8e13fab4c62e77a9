"""Serving speed: Lorimer, vLLM on the CPU, llama.cpp's server and PEFT's mixed batch, the same client and prompts, in turns.

    make bench-serve                     all cases, three repeats
    python bench/serve.py --repeats 1 --systems lorimer vllm --cases base mixed8

The peers run in environments of their own: LORIMER_VLLM names the Python of vLLM's, LORIMER_LLAMA the folder of llama.cpp's binaries; a
peer that is not there is left out, and the results say so. llama.cpp runs the base as it is shipped, in 4 bits; all others in bfloat16.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from report import RESULTS, Row, keep_rows, kept_rows, median_rows, run_json, write_results
from train import OFFLINE, PEERS, PEERS_PYTHON, ROOT, WORK
from train import gemma as find_gemma

from lorimer.model.shipped import SHIPPED
from lorimer.storage import copy_checked

NUM_ADAPTERS, NUM_HOT, NUM_REGISTERED = 8, 64, 1000
RANK, TOKENS = 16, 64
WARM_REQUESTS = 16  # of every system, not measured: memory is touched and threads are there
VLLM = os.environ.get("LORIMER_VLLM", "")
LLAMA = os.environ.get("LORIMER_LLAMA", "")
START_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the client asks for."""

    group: str
    num_adapters: int
    """That its requests take in turn; none is the base."""
    concurrency: int
    num_requests: int = 64
    systems: tuple[str, ...] = ("lorimer", "vllm", "llama.cpp")


BASE, MIXED, MIXED_16, SINGLE = "base, 8 at once", "8 adapters, 8 at once", "8 adapters, 16 at once", "one stream"
THOUSAND = "64 of 1,000 adapters, 8 at once"
OURS = ("lorimer",)
CASES = {
    BASE: Case(group="base", num_adapters=0, concurrency=8),
    MIXED: Case(group="mixed8", num_adapters=8, concurrency=8),
    MIXED_16: Case(group="mixed8", num_adapters=8, concurrency=16),
    SINGLE: Case(group="single", num_adapters=0, concurrency=1, num_requests=6),
    THOUSAND: Case(group="thousand", num_adapters=NUM_HOT, concurrency=8, num_requests=128, systems=OURS),
    **{
        f"8 adapters, {n} at once": Case(
            group="concurrency", num_adapters=8, concurrency=n, num_requests=max(8, 4 * n), systems=("lorimer", "vllm")
        )
        for n in (1, 2, 4, 32)
    },
    **{
        f"{n} adapters, 8 at once": Case(group="adapters", num_adapters=n, concurrency=8, num_requests=max(64, n), systems=OURS)
        for n in (1, 2, 4, 16, 32, 64)
    },
}


gemma = functools.cache(find_gemma)  # before a home of this benchmark is made, so that all use one copy of the base


def adapters(count: int) -> list[Path]:
    """Random adapters of rank 16 on all linear layers, in PEFT's format; made once."""
    from lorimer.model.adapter import Lock, save_adapter
    from lorimer.model.base import load_base
    from lorimer.model.lora import LoRAConfig, initialise

    folders = [WORK / "adapters" / f"a{number}" for number in range(count)]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        base = load_base(str(gemma()))
        lock = Lock(base_name=base.name, base_digest=base.digest, template_digest="", dataset_digest="", run_id="")
        for folder in missing:
            seed = int(folder.name[1:])
            lora = initialise(LoRAConfig(rank=RANK, alpha=32.0, target_modules=tuple(base.layers)), base.layers, seed)
            generator = torch.Generator().manual_seed(seed)
            for own in lora.weights.values():
                own.b.data.normal_(0, 0.02, generator=generator)
            save_adapter(lora, folder, base, lock)
    return folders


def registered_home(count: int) -> Path:
    """A home folder with so many registered adapters; beyond 64 they share their weights' bytes and differ in their scale."""
    from lorimer.database import open_database
    from lorimer.model.base import load_base
    from lorimer.registry.records import NewVersion
    from lorimer.registry.registry import Registry

    home = WORK / f"serve-home-{count}"
    os.environ["LORIMER_HOME"] = str(home)
    registry = Registry(open_database())
    there = {version.name for version in registry.list_versions()}
    sources, base = adapters(min(count, NUM_HOT)), load_base(str(gemma()))
    for number in range(count):
        if f"a{number}" in there:
            continue
        source = sources[number % len(sources)]
        if number >= len(sources):
            source = Path(shutil.copytree(source, WORK / "one-more", copy_function=os.link, dirs_exist_ok=True))
            config = json.loads((source / "adapter_config.json").read_text())
            (source / "adapter_config.json").unlink()
            (source / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 32 + number / 1000}))
        registry.register(
            NewVersion(
                name=f"a{number}", source=source, base_name=str(gemma()), base_digest=base.digest, dataset_name="none", dataset_digest="",
                run_id="", rank=RANK, alpha=32.0, num_parameters=0, template_digest=base.renderer.template_digest,
            )
        )  # fmt: skip
        shutil.rmtree(WORK / "one-more", ignore_errors=True)
    return home


@contextlib.contextmanager
def running(command: Sequence[str], url: str, health: str, environment: dict[str, str], log: Path) -> Iterator[str]:
    """A server's process, from when it answers to the end of the block."""
    with log.open("w") as file:
        process = subprocess.Popen(list(command), stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            for _ in range(START_SECONDS * 2):
                with contextlib.suppress(urllib.error.URLError, OSError):
                    urllib.request.urlopen(url + health, timeout=2)
                    break
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended at its start:\n{log.read_text()[-3000:]}")
                time.sleep(0.5)
            else:
                raise SystemExit(f"{command[0]} did not answer in {START_SECONDS} s:\n{log.read_text()[-3000:]}")
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def lorimer(count: int) -> Iterator[str]:
    """Our server over a home of so many adapters."""
    home, port = registered_home(count), free_port()
    command = [str(Path(sys.executable).with_name("lorimer")), "serve", "--base", str(gemma()), "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}", "/healthz", {**OFFLINE, "LORIMER_HOME": str(home)}, WORK / "lorimer.log") as url:
        yield url


@contextlib.contextmanager
def vllm() -> Iterator[str]:
    """vLLM's server on the CPU, as its documentation sets it up for eight adapters."""
    port = free_port()
    modules = [f"{folder.name}={folder}" for folder in adapters(NUM_ADAPTERS)]
    command = [
        VLLM, "-m", "vllm.entrypoints.openai.api_server", "--model", str(gemma()), "--served-model-name", "base", "--port", str(port),
        "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "16", "--gpu-memory-utilization", "0.5",
        "--enable-lora", "--max-loras", "8", "--max-lora-rank", str(RANK), "--lora-modules", *modules,
    ]  # fmt: skip
    environment = {**OFFLINE, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_NO_USAGE_STATS": "1"}
    with running(command, f"http://127.0.0.1:{port}", "/health", environment, WORK / "vllm.log") as url:
        yield url


@contextlib.contextmanager
def llama() -> Iterator[str]:
    """llama.cpp's server with eight adapters, applied where a request asks for them."""
    port, files = free_port(), []
    for folder in adapters(NUM_ADAPTERS):
        file = WORK / f"{folder.name}.gguf"
        if not file.is_file():
            subprocess.run([PEERS_PYTHON, str(PEERS / "gguf_lora.py"), str(folder), str(file)], check=True)
        files.append(str(file))
    base = WORK / "base.gguf"
    if not base.is_file():
        shipped = SHIPPED["gemma3-270m"]
        copy_checked(importlib.import_module(shipped.package).chunk_paths(), base, shipped.sha256)
    command = [
        f"{LLAMA}/llama-server", "-m", str(base), "--no-repack", "--lora", ",".join(files), "--lora-init-without-apply",
        "--port", str(port),
        "-c", "16384", "-np", "8", "-t", "2", "-tb", "2",
    ]  # fmt: skip
    environment = {**OFFLINE, "LD_LIBRARY_PATH": LLAMA}
    with running(command, f"http://127.0.0.1:{port}", "/health", environment, WORK / "llama.log") as url:
        yield url


def load(url: str, models: Sequence[str], concurrency: int, *options: str, requests: int) -> dict[str, float]:
    """The shared client's figures."""
    command = [PEERS_PYTHON, str(PEERS / "load.py"), url, ",".join(models), "--concurrency", str(concurrency), "--requests", str(requests)]
    return run_json([*command, "--tokens", str(TOKENS), *options])


def measure(system: str, url: str, groups: Sequence[str], *, is_thousand: bool = False) -> list[Row]:
    """The cases of one running server, which has answered some requests before."""
    rows = []
    load(url, ["base"], 8, requests=WARM_REQUESTS)
    for name, case in CASES.items():
        if case.group not in groups or system not in case.systems or (case.group == "thousand") != is_thousand:
            continue
        models = [f"a{number}" for number in range(case.num_adapters)] or ["base"]
        options: list[str] = []
        if system == "llama.cpp" and case.num_adapters:
            models, options = ["base"], ["--llama-lora", str(case.num_adapters)]
        found = load(url, models, case.concurrency, *options, requests=case.num_requests)
        for metric, unit in (("tokens_per_second", "tokens/s"), ("ttft_p50_ms", "ms"), ("latency_p50_ms", "ms")):
            rows.append(Row(system=system, case=name, metric=metric, value=found[metric], unit=unit))
        print(f"{system}, {name}: {found['tokens_per_second']:.0f} tokens/s", file=sys.stderr, flush=True)
    return rows


def measure_cold(url: str, first: int, count: int = 12) -> list[Row]:
    """The first token of adapters nobody has asked for yet, beside the second time they are asked."""
    rows = []
    for number in range(first, first + count):
        for system in ("cold adapter", "warm adapter"):
            found = _ttft(url, f"a{number}")
            rows.append(Row(system="lorimer", case=system, metric="ttft_ms", value=1e3 * found, unit="ms"))
    return rows


def _ttft(url: str, model: str) -> float:
    body = {"model": model, "prompt": "How do I locate my card?", "max_tokens": 2, "temperature": 0, "stream": True, "ignore_eos": True}
    request = urllib.request.Request(url + "/v1/completions", data=json.dumps(body).encode(), headers={"content-type": "application/json"})
    start = time.perf_counter()
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            if line.startswith(b"data: "):
                break
    return time.perf_counter() - start


def bandwidth() -> float:
    """Bytes a second this machine reads from memory; the best of ten sweeps."""
    block = torch.ones(150_000_000)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - start)
    return block.numel() * 4 / min(seconds)


def repeat(systems: Sequence[str], cases: Sequence[str]) -> list[Row]:
    """Every system once, one after the other."""
    rows = [Row(system="machine", case="memory", metric="bytes_per_second", value=bandwidth(), unit="B/s")]
    weights = sum(path.stat().st_size for path in gemma().glob("*.safetensors"))
    rows.append(Row(system="machine", case="base", metric="weight_bytes", value=float(weights), unit="B"))
    if "lorimer" in systems:
        with lorimer(NUM_HOT) as url:
            rows += measure("lorimer", url, cases)
        if "thousand" in cases:
            with lorimer(NUM_REGISTERED) as url:
                rows += measure("lorimer", url, cases, is_thousand=True) + measure_cold(url, NUM_HOT)
    for system, start, is_there in (("vllm", vllm, VLLM), ("llama.cpp", llama, LLAMA)):
        if system in systems and is_there:
            with start() as url:
                rows += measure(system, url, cases)
    if "peft" in systems and "mixed8" in cases:
        script = [PEERS_PYTHON, str(ROOT / "bench" / "peft_mixed.py"), str(gemma()), *map(str, adapters(NUM_ADAPTERS))]
        value = run_json(script, OFFLINE)["tokens_per_second"]
        rows.append(Row(system="peft", case="8 adapters, 8 at once", metric="tokens_per_second", value=value, unit="tokens/s"))
    return rows


def repeats_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Each repeat's own rows: the machine's memory comes first in each."""
    starts = [at for at, row in enumerate(rows) if (row.system, row.case) == ("machine", "memory")]
    return [list(rows[start:stop]) for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]


def median_ratios(rows: Sequence[Row]) -> dict[str, float | str | None]:
    """The median of each repeat's ratios: memory is twice as fast in one hour as in another, so only what ran together compares."""
    each = [ratios_of(repeat) for repeat in repeats_of(rows)]
    found = {name: [value for ratios in each if isinstance(value := ratios[name], float)] for name in each[0]}
    return {name: statistics.median(values) if values else None for name, values in found.items()}


def ratios_of(rows: list[Row]) -> dict[str, float | str | None]:
    """What the goals are stated in, of one repeat; None where something was not measured."""
    values = {(row.system, row.case, row.metric): row.value for row in rows}

    def quotient(one: tuple[str, str], other: tuple[str, str]) -> float | None:
        speeds = [values.get((*which, "tokens_per_second")) for which in (one, other)]
        return None if speeds[0] is None or speeds[1] is None else speeds[0] / speeds[1]

    ratios: dict[str, float | str | None] = {
        "mixed8_c8_vs_vllm": quotient(("lorimer", MIXED), ("vllm", MIXED)),
        "mixed8_c16_vs_vllm": quotient(("lorimer", MIXED_16), ("vllm", MIXED_16)),
        "mixed8_c8_vs_llama": quotient(("lorimer", MIXED), ("llama.cpp", MIXED)),
        "mixed8_vs_peft": quotient(("lorimer", MIXED), ("peft", MIXED)),
        "mixed8_vs_base": quotient(("lorimer", MIXED), ("lorimer", BASE)),
        "adapters1000_vs_8": quotient(("lorimer", THOUSAND), ("lorimer", MIXED)),
        "single_stream_vs_vllm": quotient(("lorimer", SINGLE), ("vllm", SINGLE)),
        "single_stream_vs_llama": quotient(("lorimer", SINGLE), ("llama.cpp", SINGLE)),
    }
    cold, warm = (values.get(("lorimer", f"{kind} adapter", "ttft_ms")) for kind in ("cold", "warm"))
    ratios["cold_ttft_extra_ms"] = None if cold is None or warm is None else cold - warm
    seconds = values[("machine", "base", "weight_bytes")] / values[("machine", "memory", "bytes_per_second")]
    speed = values.get(("lorimer", BASE, "tokens_per_second"))  # of 8 at once: prompts, HTTP and client are in the time of a step
    ratios["share_of_bandwidth_floor"] = None if speed is None else seconds * speed / 8
    return ratios


def draw(rows: list[Row]) -> None:
    """Throughput and latency, against requests at once and against adapters in turn."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    sweeps = (
        ("requests at once, 8 adapters", {case.concurrency: name for name, case in CASES.items() if case.num_adapters == 8}),
        (
            "adapters in turn, 8 requests at once",
            {case.num_adapters: name for name, case in CASES.items() if case.concurrency == 8 and name != THOUSAND},
        ),
    )
    for column, (title, names) in enumerate(sweeps):
        for line, (metric, label) in enumerate(
            (("tokens_per_second", "tokens/s"), ("latency_p50_ms", "median ms of an answer of 64 tokens"))
        ):
            panel = panels[line][column]
            for system in ("lorimer", "vllm", "llama.cpp"):
                found = {row.case: row.value for row in rows if (row.system, row.metric) == (system, metric)}
                points = sorted((at, found[name]) for at, name in names.items() if name in found)
                if points:
                    panel.plot(*zip(*points, strict=True), marker="o", label=system)
            panel.set_xscale("symlog", base=2, linthresh=1)
            panel.set_xticks(sorted(names), [str(at) for at in sorted(names)])
            panel.set(ylabel=label if column == 0 else "", xlabel=title if line else "", ylim=(0, None))
            panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.suptitle("Serving Gemma 3 270M on two cores, 64 new tokens a request; medians of repeats in turns")
    figure.savefig(RESULTS / "serve.svg", metadata={"Date": None})


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=["lorimer", "vllm", "llama.cpp", "peft"])
    parser.add_argument("--cases", nargs="+", default=["base", "mixed8", "single", "thousand", "concurrency", "adapters"])
    args = parser.parse_args()
    gemma()
    for number in range(args.repeats):
        keep_rows("serve", repeat(args.systems, args.cases))
        print(f"repeat {number + 1} of {args.repeats} measured", file=sys.stderr, flush=True)
    medians, ratios = median_rows(kept_rows("serve")), median_ratios(kept_rows("serve"))
    write_results("serve", medians, ratios)
    draw(medians)
    for name, ratio in ratios.items():
        print(f"{name:28} {'not measured' if ratio is None else f'{ratio:.3f}'}")


if __name__ == "__main__":
    main()
