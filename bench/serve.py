"""Serving speed: Lorimer, vLLM on the CPU, llama.cpp's server and PEFT's mixed batch, the same client and prompts, in turns.

    make bench-serve                     all cases, three repeats
    python bench/serve.py --repeats 1 --systems lorimer vllm --cases base mixed8

The peers run in environments of their own: LORIMER_VLLM names the Python of vLLM's, LORIMER_LLAMA the folder of llama.cpp's binaries and
LORIMER_GGUF the base in its format; a peer that is not there is left out, and the results say so.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from report import Row, draw_bars, keep_rows, kept_rows, median_rows, run_json, value_of, write_results
from train import OFFLINE, PEERS, PEERS_PYTHON, ROOT, WORK, gemma

NUM_ADAPTERS, NUM_HOT, NUM_REGISTERED = 8, 64, 1000
RANK, TOKENS, REQUESTS = 16, 64, 32
VLLM = os.environ.get("LORIMER_VLLM", "")
LLAMA = os.environ.get("LORIMER_LLAMA", "")
GGUF = os.environ.get("LORIMER_GGUF", "")
START_SECONDS = 300
CASES = {
    "base, 8 at once": ("base", 0, 8),
    "8 adapters, 8 at once": ("mixed8", NUM_ADAPTERS, 8),
    "8 adapters, 16 at once": ("mixed8", NUM_ADAPTERS, 16),
    "one stream": ("single", 1, 1),
    "64 of 1,000 adapters, 8 at once": ("thousand", NUM_HOT, 8),
}


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
    command = [
        f"{LLAMA}/llama-server", "-m", GGUF, "--no-repack", "--lora", ",".join(files), "--lora-init-without-apply", "--port", str(port),
        "-c", "16384", "-np", "8", "-t", "2", "-tb", "2",
    ]  # fmt: skip
    environment = {**OFFLINE, "LD_LIBRARY_PATH": LLAMA}
    with running(command, f"http://127.0.0.1:{port}", "/health", environment, WORK / "llama.log") as url:
        yield url


def load(url: str, models: Sequence[str], concurrency: int, *options: str, requests: int = REQUESTS) -> dict[str, float]:
    """The shared client's figures."""
    command = [PEERS_PYTHON, str(PEERS / "load.py"), url, ",".join(models), "--concurrency", str(concurrency), "--requests", str(requests)]
    return run_json([*command, "--tokens", str(TOKENS), *options])


def measure(system: str, url: str, cases: Sequence[str]) -> list[Row]:
    """The cases of one running server."""
    rows = []
    for case, (kind, count, concurrency) in CASES.items():
        if kind not in cases or (kind == "thousand" and system != "lorimer"):
            continue
        models = [f"a{number}" for number in range(count)] if kind in ("mixed8", "thousand") else ["base"]
        options: list[str] = []
        if system == "llama.cpp" and kind == "mixed8":
            models, options = ["base"], ["--llama-lora", str(count)]
        found = load(url, models, concurrency, *options, requests=max(REQUESTS, count) if concurrency > 1 else 6)
        for metric, unit in (("tokens_per_second", "tokens/s"), ("ttft_p50_ms", "ms"), ("latency_p50_ms", "ms")):
            rows.append(Row(system=system, case=case, metric=metric, value=found[metric], unit=unit))
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
        with lorimer(NUM_ADAPTERS) as url:
            rows += measure("lorimer", url, [case for case in cases if case != "thousand"])
        if "thousand" in cases:
            with lorimer(NUM_REGISTERED) as url:
                rows += measure("lorimer", url, ["thousand"]) + measure_cold(url, NUM_HOT)
    for system, start, there in (("vllm", vllm, VLLM), ("llama.cpp", llama, LLAMA and GGUF)):
        if system in systems and there:
            with start() as url:
                rows += measure(system, url, cases)
    if "peft" in systems and "mixed8" in cases:
        script = [PEERS_PYTHON, str(ROOT / "bench" / "peft_mixed.py"), str(gemma()), *map(str, adapters(NUM_ADAPTERS))]
        value = run_json(script, OFFLINE)["tokens_per_second"]
        rows.append(Row(system="peft", case="8 adapters, 8 at once", metric="tokens_per_second", value=value, unit="tokens/s"))
    return rows


def ratios_of(rows: list[Row]) -> dict[str, float | str | None]:
    """What the goals are stated in; None where a system was not measured."""

    def speed(system: str, case: str) -> float:
        return value_of(rows, system, case, "tokens_per_second")

    def quotient(one: tuple[str, str], other: tuple[str, str]) -> float | None:
        with contextlib.suppress(StopIteration):
            return speed(*one) / speed(*other)
        return None

    mixed, base = "8 adapters, 8 at once", "base, 8 at once"
    ratios: dict[str, float | str | None] = {
        "mixed8_c8_vs_vllm": quotient(("lorimer", mixed), ("vllm", mixed)),
        "mixed8_c16_vs_vllm": quotient(("lorimer", "8 adapters, 16 at once"), ("vllm", "8 adapters, 16 at once")),
        "mixed8_c8_vs_llama": quotient(("lorimer", mixed), ("llama.cpp", mixed)),
        "mixed8_vs_peft": quotient(("lorimer", mixed), ("peft", mixed)),
        "mixed8_vs_base": quotient(("lorimer", mixed), ("lorimer", base)),
        "adapters1000_vs_8": quotient(("lorimer", "64 of 1,000 adapters, 8 at once"), ("lorimer", mixed)),
        "single_stream_vs_vllm": quotient(("lorimer", "one stream"), ("vllm", "one stream")),
    }
    with contextlib.suppress(StopIteration):
        cold, warm = (value_of(rows, "lorimer", f"{kind} adapter", "ttft_ms") for kind in ("cold", "warm"))
        ratios["cold_ttft_extra_ms"] = cold - warm
    with contextlib.suppress(StopIteration):
        floor = value_of(rows, "machine", "base", "weight_bytes") / value_of(rows, "machine", "memory", "bytes_per_second")
        ratios["share_of_bandwidth_floor"] = floor * speed("lorimer", base) / 8  # a step's floor over its whole time, all else included
    return ratios


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=["lorimer", "vllm", "llama.cpp", "peft"])
    parser.add_argument("--cases", nargs="+", default=["base", "mixed8", "single", "thousand"])
    args = parser.parse_args()
    for number in range(args.repeats):
        keep_rows("serve", repeat(args.systems, args.cases))
        print(f"repeat {number + 1} of {args.repeats} measured", file=sys.stderr, flush=True)
    medians = median_rows(kept_rows("serve"))
    ratios = ratios_of(medians)
    write_results("serve", medians, ratios)
    bars = {f"{row.system}: {row.case}": row.value for row in medians if row.metric == "tokens_per_second"}
    draw_bars("serve", "Serving Gemma 3 270M, 64 new tokens a request", "tokens/s", bars, note="median of repeats in turns")
    for name, ratio in ratios.items():
        print(f"{name:28} {'not measured' if ratio is None else f'{ratio:.3f}'}")


if __name__ == "__main__":
    main()
