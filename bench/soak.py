"""Isolation under fire: adapters that each answer with their own mark, a server short of memory, 64 clients that behave and misbehave.

    make soak                            ten minutes over a random base of three layers
    python bench/soak.py --minutes 2 --base ~/.lorimer/bases/gemma3-270m

It fails on a wrong mark, a request that is not answered, an error that is not a proper one, and on memory, blocks, held adapters, threads
or files that do not come back.
"""

import argparse
import asyncio
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from report import Row, write_results
from soak_clients import Book, Fire, run_client
from soak_home import HALF_SCALE, Halves, Mark, prepare, register, steady_questions
from soak_http import Server
from train import ROOT, WORK

from lorimer.database import open_database
from lorimer.model.base import Base
from lorimer.registry.compositions import compose
from lorimer.registry.registry import Registry
from lorimer.serving.grants import Grant, Quota
from lorimer.serving.keys import Keys

NUM_NAMES, NUM_SPARE, NUM_LATER, NUM_CLIENTS = 24, 12, 10, 64
MAX_SLOPE = 2.0
"""Megabytes a minute that the second half may grow by: an hour of such fire is a tenth of a gigabyte."""
MIN_SECONDS_FOR_SLOPE = 240  # before, everything is still used for the first time
MAX_MORE_FILES, MAX_MORE_THREADS = 24, 8
"""The database keeps five connections open, of three files each; thousands of requests leave nothing else behind."""
PROGRAM = "import sys; from lorimer.cli.main import run; sys.exit(run(sys.argv[1:]))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The server at one moment."""

    seconds: float
    rss_mb: float
    num_threads: int
    num_files: int
    metrics: Mapping[str, float]


def make_home(home: Path, base: Base, found: Sequence[Mark], pairs: Sequence[Halves]) -> tuple[Registry, Book, dict[str, str]]:
    """A registry with the first version of everything, keys, and what is true of them."""
    shutil.rmtree(home, ignore_errors=True)
    os.environ["LORIMER_HOME"] = str(home)
    registry, book = Registry(open_database()), Book()
    for mark in found[:NUM_NAMES]:
        book.begin(mark.name, mark.says)
    for mark in (*found[:NUM_NAMES], *found[NUM_NAMES + NUM_SPARE :]):
        register(registry, base, mark)
        book.newest[mark.name] = 1
    for pair in pairs:
        spelled = f"{pair.first}@v1+{pair.second}@v1*{1 / HALF_SCALE:g}"
        name = f"whole{pair.says[4:]}"
        compose(registry, name, spelled.split("+"))
        book.says[spelled] = pair.says
        book.begin(name, pair.says)
        book.end(name)
    damage(registry, base, found)
    keys = Keys(registry.engine)
    grants = {
        "all": (Grant(), Quota()),
        "few": (Grant(adapters=tuple(mark.name for mark in found[:4]), may_use_base=False), Quota()),
        "slow": (Grant(), Quota(requests_per_minute=60, tokens_per_minute=20_000, concurrency=2)),
        "brief": (Grant(max_body_bytes=20_000, max_context=100), Quota()),
        "ops": (Grant(is_admin=True), Quota()),
    }
    made = {name: keys.create(name, tenant=name, grant=grant, quota=quota).text for name, (grant, quota) in grants.items()}
    return registry, book, made


def damage(registry: Registry, base: Base, found: Sequence[Mark]) -> None:
    """Two adapters that must never answer: one of other bytes than were registered, one with another's fingerprint."""
    damaged, swapped = (
        register(registry, base, Mark(name=name, says=mark.says, folder=mark.folder, rank=mark.rank))
        for name, mark in zip(("damaged", "swapped"), found[NUM_NAMES + NUM_LATER : NUM_NAMES + NUM_SPARE], strict=True)
    )
    weights = damaged.path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0x40
    weights.write_bytes(data)
    shutil.copy(registry.resolve(found[0].name).path / "fingerprint.json", swapped.path / "fingerprint.json")


class Process:
    """`lorimer serve` over the home, with little room for adapters and for keys and values."""

    def __init__(self, home: Path, base_folder: Path, arguments: Sequence[str], log: Path, deadline: float) -> None:
        environment = {
            **os.environ,
            "LORIMER_HOME": str(home),
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path]),
        }
        command = [sys.executable, "-c", PROGRAM, "serve", "--base", str(base_folder), "--port", "0", *arguments]
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        if " on http://" not in first:
            raise SystemExit(f"the server did not start: {first}{log.read_text()[-2000:]}")
        host, _, port = first.split(" on http://")[1].split()[0].partition(":")
        self.server = Server(host=host, port=int(port), deadline=deadline)

    async def look(self, key: str, began: float) -> Sample:
        """What it holds now."""
        reply = await self.server.ask("GET", "/metrics", key=key)
        lines = (line.rpartition(" ") for line in reply.body.decode().splitlines() if line[0] != "#" and "{" not in line)
        own = Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
        return Sample(
            seconds=time.monotonic() - began,
            rss_mb=int(status["VmRSS"].split()[0]) / 1024,
            num_threads=int(status["Threads"]),
            num_files=len(list((own / "fd").iterdir())),
            metrics={name: float(value) for name, _, value in lines},
        )

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.communicate(timeout=self.server.deadline)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # its log then tells where every thread was
            self.process.communicate()
        return self.process.returncode


async def register_later(fire: Fire, registry: Registry, base: Base, later: Sequence[Mark], seconds: float) -> None:
    """New versions under names that are being asked for, spread over the time; a composition gets one too, of other parts."""
    for mark in later:
        await asyncio.sleep(seconds / (len(later) + 1))
        fire.book.begin(mark.name, mark.says)
        await asyncio.to_thread(register, registry, base, mark)
        fire.book.end(mark.name)
        pair, name = random.Random(mark.says).sample(list(fire.pairs), 2), random.Random(mark.says).choice(list(fire.composed))
        parts = [f"{pair[0].first}@v1", f"{pair[0].second}@v1*{1 / HALF_SCALE:g}"]
        if any(fire.book.says[f"{name}@v{version}"] == pair[0].says for version in range(1, fire.book.begun[name] + 1)):
            continue  # the same parts are the same version
        fire.book.begin(name, pair[0].says)
        await asyncio.to_thread(compose, registry, name, parts)
        fire.book.end(name)


async def watch(process: Process, fire: Fire, samples: list[Sample], began: float) -> None:
    """A line every ten seconds, and what the server holds."""
    while not fire.stop.is_set():
        await asyncio.sleep(10)
        now = await process.look(fire.keys["ops"], began)
        samples.append(now)
        at, answered = now.metrics, sum(count for name, count in fire.counts.items() if name.endswith(": ok"))
        print(
            f"{now.seconds:5.0f} s  {sum(fire.counts.values()):6d} asked, {answered:6d} right, {dict(fire.kinds) or 'no problem'} "
            f"{now.rss_mb:6.0f} MB, {at['lorimer_cache_blocks_free']:.0f}/{at['lorimer_cache_blocks']:.0f} blocks, "
            f"{at['lorimer_adapter_holds']:.0f} holds, {at['lorimer_answers_open']:.0f} open, {at['lorimer_adapters_resident']:.0f} in, "
            f"{at['lorimer_preemptions']:.0f} preempted, {now.num_threads} threads, {now.num_files} files",
            file=sys.stderr,
            flush=True,
        )


async def fire_at(
    process: Process, fire: Fire, registry: Registry, base: Base, later: Sequence[Mark], seconds: float
) -> tuple[list[Sample], Sample, Sample]:
    """The fire itself; returns what the server held before, meanwhile and after, once it is quiet."""
    began, samples = time.monotonic(), list[Sample]()
    before = await process.look(fire.keys["ops"], began)
    clients = [asyncio.create_task(run_client(fire, seed)) for seed in range(NUM_CLIENTS)]
    others = [
        asyncio.create_task(watch(process, fire, samples, began)),
        asyncio.create_task(register_later(fire, registry, base, later, seconds)),
    ]
    await asyncio.sleep(seconds)
    fire.stop.set()
    await asyncio.gather(*clients, *others)
    patient_until = time.monotonic() + process.server.deadline
    while True:
        after = await process.look(fire.keys["ops"], began)
        if is_quiet(after) or time.monotonic() > patient_until:
            return samples, before, after
        await asyncio.sleep(1)


def is_quiet(sample: Sample) -> bool:
    """Whether nothing is held for anybody; what the cache keeps in case it is asked again is held for nobody."""
    at = sample.metrics
    is_free = at["lorimer_cache_blocks_free"] == at["lorimer_cache_blocks"]
    names = ("lorimer_adapter_holds", "lorimer_answers_open", "lorimer_requests_running", "lorimer_requests_waiting")
    return is_free and not any(at[name] for name in names)


def slope(samples: Sequence[Sample]) -> float:
    """Megabytes a minute in the second half, by least squares."""
    later = samples[len(samples) // 2 :]
    if len(later) < 3:
        return 0.0
    minutes = torch.tensor([sample.seconds / 60 for sample in later], dtype=torch.float64)
    memory = torch.tensor([sample.rss_mb for sample in later], dtype=torch.float64)
    minutes = minutes - minutes.mean()
    return float((minutes * memory).sum() / minutes.square().sum())


def leaks(samples: Sequence[Sample], before: Sample, after: Sample) -> list[str]:
    """What did not come back."""
    found = []
    if not is_quiet(after):
        found.append(f"long after the last request the server still holds something: {dict(after.metrics)}")
    if after.num_files > before.num_files + MAX_MORE_FILES:
        found.append(f"{after.num_files} open files, {before.num_files} before")
    if after.num_threads > max(sample.num_threads for sample in samples[: len(samples) // 2 + 1]) + MAX_MORE_THREADS:
        found.append(f"{after.num_threads} threads, {before.num_threads} before")
    if samples[-1].seconds >= MIN_SECONDS_FOR_SLOPE and (grown := slope(samples)) > MAX_SLOPE:
        found.append(f"memory grew by {grown:.2f} MB a minute in the second half, allowed are {MAX_SLOPE}")
    return found


def main() -> None:
    """Soak, judge, write the figures; the exit code says whether all was as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--base", type=Path, help="a base's folder; by default a random base of three layers")
    parser.add_argument("--deadline", type=float, default=180, help="seconds within which every request has to end")
    parser.add_argument("--dry", action="store_true", help="print, but write no results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    work = WORK / "soak"
    base, base_folder, found, pairs = prepare(work, args.base, num_names=NUM_NAMES, num_spare=NUM_SPARE)
    registry, book, keys = make_home(work / "home", base, found, pairs)
    book.steady = steady_questions(base, 8)
    is_tiny = args.base is None
    room = ("--cache-mb", "0.5", "--adapter-mb", "0.2") if is_tiny else ("--cache-mb", "80", "--adapter-mb", "60")
    process = Process(work / "home", base_folder, room, work / "server.log", args.deadline)
    fire = Fire(
        server=process.server,
        book=book,
        names=[mark.name for mark in found[:NUM_NAMES]],
        pairs=pairs,
        composed=[f"whole{pair.says[4:]}" for pair in pairs],
        keys=keys,
    )
    try:
        later = found[NUM_NAMES : NUM_NAMES + NUM_LATER]
        samples, before, after = asyncio.run(fire_at(process, fire, registry, base, later, args.minutes * 60))
    finally:
        code = process.stop()
    problems = [*fire.problems, *leaks(samples, before, after)]
    if code != 0:
        problems.append(f"the server ended with exit code {code}")
    if "Traceback" in (log := process.log.read_text()):
        problems.append(f"the server's log has a traceback: {log[log.index('Traceback') :][:1500]}")
    show(fire, problems)
    if not args.dry:
        write(fire, args, base.name, samples, before, after, problems)
    sys.exit(1 if problems else 0)


def show(fire: Fire, problems: Sequence[str]) -> None:
    """The summary."""
    for name, count in sorted(fire.counts.items()):
        print(f"{count:7d}  {name}")
    print(*problems[:20], sep="\n")
    print("FAIL" if problems else "PASS")


def write(
    fire: Fire, args: argparse.Namespace, base_name: str, samples: Sequence[Sample], before: Sample, after: Sample, problems: Sequence[str]
) -> None:
    """`bench/results/soak.json`"""
    case = f"{NUM_CLIENTS} clients, {args.minutes:g} minutes, {'a random base of 3 layers' if args.base is None else base_name}"
    answered = sum(count for name, count in fire.counts.items() if name.endswith(": ok"))
    refusals = sum(count for name, count in fire.counts.items() if name.rpartition(": ")[2][:2] in ("40", "41"))
    busy = sum(count for name, count in fire.counts.items() if name.rpartition(": ")[2].startswith(("429", "503 overloaded")))
    figures = {
        ("requests", "count"): sum(fire.counts.values()),
        ("answers_with_the_right_mark", "count"): answered,
        ("proper_refusals", "count"): refusals,
        ("refused_as_over_a_limit", "count"): busy,
        ("connections_cut", "count"): sum(count for name, count in fire.counts.items() if name.endswith(": left")),
        ("versions_registered_meanwhile", "count"): sum(fire.book.begun.values()) - len(fire.book.begun),
        ("preempted", "count"): after.metrics["lorimer_preemptions"],
        ("memory_before", "MB"): before.rss_mb,
        ("memory_at_half", "MB"): samples[len(samples) // 2].rss_mb if samples else before.rss_mb,
        ("memory_after", "MB"): after.rss_mb,
        ("memory_slope_of_second_half", "MB/min"): slope(samples),
        ("threads_after", "count"): after.num_threads,
        ("open_files_after", "count"): after.num_files,
    }
    rows = [Row(system="lorimer", case=case, metric=metric, value=float(value), unit=unit) for (metric, unit), value in figures.items()]
    ratios = {
        "soak_wrong_marks": float(fire.kinds["wrong"]),
        "soak_stuck_requests": float(fire.kinds["stuck"]),
        "soak_improper_errors": float(fire.kinds["improper"]),
        "soak_leaks": float(len(leaks(samples, before, after))),
        "soak_minutes": float(args.minutes),
        "soak_verdict": "FAIL" if problems else "PASS",
    }
    write_results("soak", rows, ratios)


if __name__ == "__main__":
    main()
