"""The data room beside the truth: near duplicates in shops' products, leaks in a public test file, a million rows in bounded memory.

    make bench-data

A million rows are curated by the command `lorimer data curate`, in a process and a home of its own; its peak counts all its processes.
"""

import argparse
import csv
import importlib.util
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import data_rules
from report import Row, draw_bars, write_results

from lorimer.config import Shingling
from lorimer.data.near import candidates
from lorimer.data.rules import fold
from lorimer.data.shingles import NUM_BANDS, ROWS_PER_BAND, SIGNATURE_LEN, shingle, sketch

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LORIMER_SHARED_DATA", ROOT.parent / "shared" / "data"))
PRODUCTS = ("abt_buy_test", "abt_buy_valid", "amazon_google_test")
NUM_SYNTHETIC = 1_000_000
CURATE = [sys.executable, "-c", "from lorimer.cli.main import main; main()", "data", "curate"]


def read_products(name: str, *, names_only: bool = False) -> list[tuple[str, str, bool]]:
    """Pairs of records and whether they are the same product; of each record all values, or what it is called."""
    pairs = []
    for line in (SHARED / "product_matching" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        left, right, label = line.split("\t")
        pairs.append((_values(left, names_only), _values(right, names_only), label.strip() == "1"))
    return pairs


def _values(record: str, names_only: bool) -> str:
    values = [part.partition(" VAL ")[2] for part in record.split("COL ")[1:]]
    return fold(" ".join(values[:1] if names_only else values))


def score(found: Sequence[bool], truth: Sequence[bool]) -> tuple[float, float]:
    """Precision and recall."""
    hits = sum(a and b for a, b in zip(found, truth, strict=True))
    return hits / max(1, sum(found)), hits / max(1, sum(truth))


def bench_products() -> Iterator[Row]:
    """Precision and recall of true Jaccard on the labelled pairs, by kind of shingle and threshold."""
    for name, names_only in product(PRODUCTS, (False, True)):
        pairs = read_products(name, names_only=names_only)
        truth = [same for *_, same in pairs]
        for unit, size in (("chars", 5), ("words", 1), ("words", 2)):
            for threshold in (0.5, 0.6, 0.7, 0.8):
                how = Shingling(unit=unit, size=size, threshold=threshold)
                found = [_jaccard(left, right, how) >= threshold for left, right, _ in pairs]
                precision, recall = score(found, truth)
                case = f"product_matching {name}, {'names' if names_only else 'records'}, {size} {unit}, from {threshold}"
                yield Row(system="lorimer", case=case, metric="precision", value=precision, unit="share")
                yield Row(system="lorimer", case=case, metric="recall", value=recall, unit="share")


def _jaccard(left: str, right: str, how: Shingling) -> float:
    sets = [set(shingle([text], how).hashes.tolist()) for text in (left, right)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def bench_candidates() -> Iterator[Row]:
    """Ours beside rensa and datasketch, where they are installed: how many of the near pairs they meet, and rows a second."""
    texts = sorted({text for name in PRODUCTS for left, right, _ in read_products(name) for text in (left, right)})
    how = Shingling(threshold=0.6)
    sets = [set(shingle([text], how).hashes.tolist()) for text in texts]
    truth = {pair for pair in _all_near(sets, 0.6)}
    finders: dict[str, Callable[[], set[tuple[int, int]]]] = {"lorimer": lambda: _ours(texts, how)}
    if importlib.util.find_spec("rensa"):
        finders["rensa"] = lambda: _rensa(texts)
    if importlib.util.find_spec("datasketch"):
        finders["datasketch"] = lambda: _datasketch(texts)
    for system, find in finders.items():
        start = time.perf_counter()
        found = find()
        seconds = time.perf_counter() - start
        case = f"{len(texts):,} product texts, {NUM_BANDS} bands of {ROWS_PER_BAND}"
        kept = {pair for pair in found if _share(sets, pair) >= 0.6}
        yield Row(system=system, case=case, metric="candidates that are near (0.6)", value=len(kept) / max(1, len(found)), unit="share")
        for low in (0.6, 0.7, 0.8):
            near = {pair for pair in truth if _share(sets, pair) >= low}
            yield Row(system=system, case=case, metric=f"near pairs met (from {low})", value=len(near & found) / len(near), unit="share")
        yield Row(system=system, case=case, metric="rows a second", value=len(texts) / seconds, unit="rows/s")


def _share(sets: Sequence[set[int]], pair: tuple[int, int]) -> float:
    left, right = sets[pair[0]], sets[pair[1]]
    return len(left & right) / len(left | right)


def _all_near(sets: Sequence[set[int]], threshold: float) -> Iterator[tuple[int, int]]:
    """Every pair, compared: quadratic, which is why this is the truth and not the product."""
    order = sorted(range(len(sets)), key=lambda number: len(sets[number]))
    for at, left in enumerate(order):
        for right in order[at + 1 :]:
            if len(sets[left]) < threshold * len(sets[right]):
                break
            if _share(sets, (left, right)) >= threshold:
                yield min(left, right), max(left, right)


def _ours(texts: Sequence[str], how: Shingling) -> set[tuple[int, int]]:
    return {(left, right) for left, right in candidates(sketch(shingle(texts, how)), how.threshold).tolist()}


def _grams(text: str) -> list[str]:
    return [text[at : at + 5] for at in range(max(1, len(text) - 4))]


def _rensa(texts: Sequence[str]) -> set[tuple[int, int]]:
    import rensa

    index = rensa.RMinHashLSH(threshold=0.6, num_perm=SIGNATURE_LEN, num_bands=NUM_BANDS)
    found = set[tuple[int, int]]()
    for number, text in enumerate(texts):
        minhash = rensa.RMinHash(num_perm=SIGNATURE_LEN, seed=42)
        minhash.update(_grams(text))
        found.update((min(other, number), max(other, number)) for other in index.query(minhash) if other != number)
        index.insert(number, minhash)
    return found


def _datasketch(texts: Sequence[str]) -> set[tuple[int, int]]:
    import datasketch

    index = datasketch.MinHashLSH(num_perm=SIGNATURE_LEN, params=(NUM_BANDS, ROWS_PER_BAND))
    found = set[tuple[int, int]]()
    for number, text in enumerate(texts):
        minhash = datasketch.MinHash(num_perm=SIGNATURE_LEN)
        minhash.update_batch([gram.encode() for gram in _grams(text)])
        found.update((min(other, number), max(other, number)) for other in index.query(minhash))
        index.insert(number, minhash)
    return found


def bench_leaks() -> Iterator[Row]:
    """Rows of banking77's train file that its test file gives away, against a count made without us."""
    folder = SHARED / "banking77"
    rows = {name: list(csv.DictReader((folder / f"{name}.csv").open(encoding="utf-8"))) for name in ("train", "test")}
    asked = {" ".join(row["text"].lower().split()) for row in rows["test"]}
    truth = sum(" ".join(row["text"].lower().split()) in asked for row in rows["train"])
    with tempfile.TemporaryDirectory() as home:
        columns = ["--prompt-column", "text", "--completion-column", "category"]
        card, seconds, _ = curate([str(folder / "train.csv"), "--test", str(folder / "test.csv"), *columns], Path(home))
    findings = {finding["rule"]: finding for finding in card["findings"]}
    case = "banking77"
    yield Row(system="lorimer", case=case, metric="exact leaks found", value=findings["leak"]["num_removed"], unit="rows")
    yield Row(system="counted", case=case, metric="exact leaks found", value=truth, unit="rows")
    yield Row(system="lorimer", case=case, metric="near leaks found (0.8)", value=findings["near_leak"]["num_removed"], unit="rows")
    yield Row(
        system="lorimer", case=case, metric="exact duplicates found", value=findings["drop_exact_duplicates"]["num_removed"], unit="rows"
    )
    yield Row(system="lorimer", case=case, metric="time, 13,083 rows", value=seconds, unit="s")


def write_synthetic(path: Path, num: int, seed: int = 0) -> tuple[int, int]:
    """Rows of about 200 characters, of which every twentieth repeats an earlier one and every twentieth nearly does; how many do."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 10))) for _ in range(20_000)]
    kept: list[list[str]] = []
    exact = near = 0
    with path.open("w", encoding="utf-8") as file:
        for number in range(num):
            if kept and number % 20 == 7:
                said, exact = rng.choice(kept), exact + 1
            elif kept and number % 20 == 13:
                said, near = list(rng.choice(kept)), near + 1
                said[rng.randrange(len(said))] = rng.choice(words)
            else:
                said = rng.choices(words, k=rng.randint(20, 32))
                if number % 10 == 0:
                    kept.append(said)
            label = f"queue {len(said[0]) % 7}"
            row = {"prompt": " ".join(said), "completion": label, "customer": number % 50_000, "language": "en"}
            file.write(json.dumps(row) + "\n")
    return exact, near


def curate(arguments: Sequence[str], home: Path) -> tuple[dict[str, Any], float, float]:
    """Curate in a process of its own: its card, seconds, and the most memory (bytes) it and its workers held at once."""
    peak, done = [0.0], threading.Event()
    start = time.perf_counter()
    environment = {**os.environ, "LORIMER_HOME": str(home)}
    process = subprocess.Popen([*CURATE, *arguments, "--name", "bench", "--json"], stdout=subprocess.PIPE, env=environment)

    def watch() -> None:
        while not done.wait(0.2):
            peak[0] = max(peak[0], sum(map(_rss, _family(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"lorimer data curate ended with {process.returncode}")
    own = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return json.loads(out)["card"], seconds, max(peak[0], own if not peak[0] else 0)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(inner for child in children for inner in _family(int(child)))]


def _rss(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0.0


def bench_million(num: int) -> Iterator[Row]:
    """A million rows through all default rules; then with every rule there is."""
    with tempfile.TemporaryDirectory() as folder:
        path, rules = Path(folder) / "rows.jsonl", Path(folder) / "rules.yaml"
        exact, near = write_synthetic(path, num)
        card, seconds, peak = curate([str(path)], Path(folder) / "home")
        shutil.rmtree(Path(folder) / "home")
        yield from _million_rows(f"{num:,} synthetic rows, all default rules", num, card, seconds, peak, exact, near)
        rules.write_text(
            "rules: {language: true, length: true, pii: {default: pseudonymise}, low_information: {action: drop}}\nlabels: search\n"
        )
        card, seconds, peak = curate([str(path), "--rules", str(rules)], Path(folder) / "home")
        shutil.rmtree(Path(folder) / "home")
        yield from _million_rows(f"{num:,} synthetic rows, every rule", num, card, seconds, peak, exact, near)


def _million_rows(case: str, num: int, card: dict[str, Any], seconds: float, peak: float, exact: int, near: int) -> Iterator[Row]:
    findings = {finding["rule"]: finding for finding in card["findings"]}
    yield Row(system="lorimer", case=case, metric="time", value=seconds, unit="s")
    yield Row(system="lorimer", case=case, metric="rows a second", value=num / seconds, unit="rows/s")
    yield Row(system="lorimer", case=case, metric="peak memory, all processes", value=peak / 1e9, unit="GB")
    removed = findings["drop_exact_duplicates"]["num_removed"]
    yield Row(system="lorimer", case=case, metric="exact duplicates found of those made", value=removed / exact, unit="share")
    yield Row(
        system="lorimer", case=case, metric="near duplicates found of those made", value=card["duplicates"]["near"] / near, unit="share"
    )


def bench_rules() -> Iterator[Row]:
    """The rules over rows and labels, each beside known truth."""
    yield from data_rules.rows(SHARED)


def main() -> None:
    """Measure all, or one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"products": bench_products, "candidates": bench_candidates, "leaks": bench_leaks, "rules": bench_rules}
    parser.add_argument("--only", choices=[*parts, "million"])
    parser.add_argument("--rows", type=int, default=NUM_SYNTHETIC)
    args = parser.parse_args()
    rows = list[Row]()
    for name, measure in {**parts, "million": lambda: bench_million(args.rows)}.items():
        if args.only in (None, name):
            for row in measure():
                rows.append(row)
                print(f"{row.system:12} {row.case:60} {row.metric:44} {row.value:12.4f} {row.unit}", flush=True)
    if args.only:
        return
    million = {row.metric: row.value for row in rows if "all default rules" in row.case}
    ratios: dict[str, float | str | None] = {
        "million_rows_minutes": million["time"] / 60,
        "million_rows_peak_gb": million["peak memory, all processes"],
        "million_rows_per_second": million["rows a second"],
    }
    write_results("data", rows, ratios)
    speeds = {row.system: row.value for row in rows if row.metric == "rows a second" and "product texts" in row.case}
    speeds["lorimer, a million rows, all rules"] = million["rows a second"]
    draw_bars("data", "Finding near rows", "rows a second", speeds)


if __name__ == "__main__":
    main()
