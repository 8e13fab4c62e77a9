"""The data room's rules against known truth, and how many rows a second each judges: functions that return rows for `bench/data.py`.

    python bench/data_rules.py

One core throughout. Truth: marked personal data (presidio_pii), people's votes on labels (label_errors), labels changed on purpose
(banking77), languages (xsid), tags of style (bitext_customer_support), left-over markers (dolly_sample).
"""

import csv
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from report import Row
from xsid import read_conll

from lorimer.data.boilerplate import Boilerplate
from lorimer.data.encoding import RepairEncoding
from lorimer.data.example import Example, Message
from lorimer.data.information import LengthBounds, LowInformation
from lorimer.data.label_noise import find_label_noise, find_suspects
from lorimer.data.language import DetectLanguage, detect_language
from lorimer.data.named_entities import NamedEntities
from lorimer.data.pii import find_pii
from lorimer.data.pii_report import Marked, read_presidio, score_pii
from lorimer.data.pii_rule import ProtectPii
from lorimer.data.pseudonyms import Pseudonyms
from lorimer.data.remnants import TemplateRemnants
from lorimer.data.rules import RowRule
from lorimer.data.secrets import ProtectSecrets, find_secrets
from lorimer.data.style import count_words, describe_style, find_slips, slips_in
from lorimer.data.toxicity import Toxicity

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LANGUAGES = ("en", "de", "it", "nl", "tr", "zh", "ja")
NUM_TIMED = 20_000
RULES: tuple[RowRule, ...] = (
    RepairEncoding(),
    LengthBounds(),
    TemplateRemnants(),
    Boilerplate(),
    LowInformation(),
    DetectLanguage(),
    Toxicity(),
    ProtectSecrets(),
    ProtectPii(default="pseudonymise", pseudonyms=Pseudonyms(b"bench")),
)


def row(case: str, metric: str, value: float, unit: str = "share") -> Row:
    """One figure of ours."""
    return Row(system="lorimer", case=case, metric=metric, value=value, unit=unit)


def pii_rows(data: Path = DATA) -> Iterator[Row]:
    """Personal data on 1,500 marked sentences, kind by kind; kinds nobody looks for without a model have recall 0."""
    marked = read_presidio(json.loads((data / "presidio_pii" / "synth_dataset_v2.json").read_text(encoding="utf-8")))
    for score in score_pii(marked):
        if score.precision is not None:
            yield row(f"pii, {score.kind}", "precision", score.precision)
        if score.recall is not None:
            yield row(f"pii, {score.kind}", "recall", score.recall)
    yield from _named_rows(marked)
    found = sum(len(find_pii(text)) for text in prose(data))
    yield row("pii, ordinary prose", "found_per_million_chars", 1e6 * found / sum(map(len, prose(data))), "")


def _named_rows(marked: Sequence[Marked]) -> Iterator[Row]:
    """Names and places, where Presidio and a spaCy model for English are installed."""
    if not importlib.util.find_spec("presidio_analyzer"):
        print("names are not measured: lorimer[pii] is not installed", file=sys.stderr)
        return
    models = [model for model in importlib.import_module("spacy").util.get_installed_models() if model.startswith("en")]
    for model in models[:1]:
        names = NamedEntities(model=model, kinds=("PERSON", "ADDRESS"))
        names.find("Jo")
        start = time.process_time()
        scores = score_pii([Marked(text, [span for span in truth if span.kind in names.kinds]) for text, truth in marked], names.find)
        seconds = time.process_time() - start
        for score in scores:
            if score.precision is not None and score.recall is not None:
                yield row(f"pii, {score.kind}, {model}", "precision", score.precision)
                yield row(f"pii, {score.kind}, {model}", "recall", score.recall)
        yield row(f"pii, names, {model}", "rows_per_second", len(marked) / seconds, "rows/s")


def secrets_rows(data: Path = DATA) -> Iterator[Row]:
    """Secrets in texts that hold none: false alarms in a million characters."""
    texts = prose(data)
    yield row(
        "secrets, ordinary prose", "found_per_million_chars", 1e6 * sum(len(find_secrets(t)) for t in texts) / sum(map(len, texts)), ""
    )


def language_rows(data: Path = DATA) -> Iterator[Row]:
    """Language of short commands (36 characters on average), among all languages and among the seven that are there."""
    for code in LANGUAGES:
        texts = [text for text, _ in read_conll(data / "xsid" / f"{code}.test.conll")]
        for name, candidates in (("any", ()), ("of seven", LANGUAGES)):
            right = sum(detect_language(text, candidates).language == code for text in texts)
            yield row(f"language, {code}, {name}", "recall", right / len(texts))


def noise_rows(data: Path = DATA) -> Iterator[Row]:
    """Label noise: against people's votes with given probabilities, and against labels changed on purpose with our own classifier."""
    folder = data / "label_errors"
    index = json.loads((folder / "imdb_test_set_index_to_filename.json").read_text(encoding="utf-8"))
    places = {name: place for place, name in enumerate(index)} if isinstance(index, list) else {n: int(p) for p, n in index.items()}
    for name, place in (("20news", int), ("imdb", lambda found: places[found.removeprefix("test/") + ".txt"])):
        labels = np.load(folder / f"{name}_test_set_original_labels.npy", allow_pickle=False).astype(np.int64)
        suspects = set(find_suspects(np.load(folder / f"{name}_test_set_pyx.npy", allow_pickle=False), labels).tolist())
        votes = json.loads((folder / f"{name}_mturk.json").read_text(encoding="utf-8"))
        checked = {place(vote["id"]) for vote in votes}
        wrong = {place(vote["id"]) for vote in votes if vote["mturk"]["given"] < 3}
        yield row(f"label noise, {name}, people's votes", "precision", len(suspects & wrong) / len(suspects & checked))
        yield row(f"label noise, {name}, people's votes", "recall", len(suspects & wrong) / len(wrong))
    yield from _changed_label_rows(data)


def _changed_label_rows(data: Path) -> Iterator[Row]:
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        pairs = [(found["text"], found["category"]) for found in csv.DictReader(file)]
    texts, labels = [text for text, _ in pairs], np.array([label for _, label in pairs])
    rng, names = np.random.default_rng(0), np.unique(labels)
    changed = rng.choice(len(labels), len(labels) // 10, replace=False)
    noisy = labels.copy()
    for place in changed:
        noisy[place] = rng.choice(names[names != labels[place]])
    start = time.process_time()
    report = find_label_noise(texts, noisy.tolist())
    seconds = time.process_time() - start
    right, case = len(set(report.suspects.tolist()) & set(changed.tolist())), "label noise, banking77, 10% changed"
    yield row(case, "precision", right / len(report.suspects))
    yield row(case, "recall", right / len(changed))
    yield row(case, "rows_per_second", len(labels) / seconds, "rows/s")


def tag_rows(data: Path = DATA) -> Iterator[Row]:
    """Which rule finds which of bitext's tags."""
    with (data / "bitext_customer_support" / "bitext_customer_support.csv").open(encoding="utf-8", newline="") as file:
        pairs = [(found["instruction"], found["tags"]) for found in csv.DictReader(file)]
    slips, toxicity = find_slips(count_words(text for text, _ in pairs)), Toxicity()
    finders: dict[str, tuple[str, Callable[[str], bool]]] = {
        "W, by toxicity": ("W", lambda text: bool(toxicity(Example(text=text, source="")).reason)),
        "Z, by slips and spacing": ("Z", lambda text: bool(slips_in(text, slips)) or "spacing" in describe_style(text)),
        "Q, by colloquial": ("Q", lambda text: "colloquial" in describe_style(text)),
        "K, by keywords": ("K", lambda text: "keywords" in describe_style(text)),
        "P, by polite": ("P", lambda text: "polite" in describe_style(text)),
        "I, by question": ("I", lambda text: "question" in describe_style(text)),
    }
    for name, (tag, find) in finders.items():
        found = [find(text) for text, _ in pairs]
        right = sum(hit and tag in tags for hit, (_, tags) in zip(found, pairs, strict=True))
        yield row(f"bitext tag {name}", "precision", right / sum(found))
        yield row(f"bitext tag {name}", "recall", right / sum(tag in tags for _, tags in pairs))


def remnant_rows(data: Path = DATA) -> Iterator[Row]:
    """Template remnants: every row of dolly_sample ends with a marker, and bitext's answers hold placeholders; gsm8k has neither."""
    rule = TemplateRemnants()
    lines = (data / "dolly_sample" / "dolly_151.jsonl").read_text(encoding="utf-8").splitlines()
    dolly = [_chat(found["prompt"], found["answer"]) for found in map(json.loads, lines)]
    yield row("markers, dolly_sample", "recall", sum("marker" in rule(example).reason for example in dolly) / len(dolly))
    lines = (data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    clean = [_chat(found["question"], found["answer"]) for found in map(json.loads, lines)]
    yield row("markers, gsm8k (has none)", "false_alarms", sum(bool(rule(example).reason) for example in clean) / len(clean))
    low = LowInformation()
    yield row("low information, gsm8k (has none)", "false_alarms", sum(bool(low.judge(example)) for example in clean) / len(clean))


def rate_rows(data: Path = DATA) -> Iterator[Row]:
    """Rows a second of each rule and of all of them, on rows of about 200 characters."""
    examples = timed_rows(data)
    chars = sum(len(message.content) for example in examples for message in example.messages) / len(examples)
    yield row("rules, rows timed", "mean_chars", chars, "chars")
    total = 0.0
    for rule in RULES:
        rule(examples[0])  # reads models and compiles patterns
        start = time.process_time()
        for example in examples:
            rule(example)
        seconds = time.process_time() - start
        total += seconds
        yield row(f"rule {rule.name}", "rows_per_second", len(examples) / seconds, "rows/s")
    yield row("all row rules", "rows_per_second", len(examples) / total, "rows/s")
    yield row("all row rules", "milliseconds_per_row", 1000 * total / len(examples), "ms")


def timed_rows(data: Path = DATA) -> list[Example]:
    """Real questions with the beginnings of real answers, 200 characters together; one in ten holds personal data."""
    marked = [
        found.text for found in read_presidio(json.loads((data / "presidio_pii" / "synth_dataset_v2.json").read_text(encoding="utf-8")))
    ]
    with (data / "bitext_customer_support" / "bitext_customer_support.csv").open(encoding="utf-8", newline="") as file:
        pairs = [(found["instruction"], found["response"]) for found in csv.DictReader(file)]
    made = []
    for index in range(NUM_TIMED):
        question, answer = pairs[index % len(pairs)]
        if index % 10 == 0:
            question = marked[index // 10 % len(marked)]
        made.append(_chat(question, answer[: max(20, 200 - len(question))]))
    return made


def prose(data: Path = DATA) -> list[str]:
    """Texts without secrets or personal data worth the name: sums, support answers, encyclopedia passages."""
    texts = [json.loads(line)["answer"] for line in (data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    with (data / "bitext_customer_support" / "bitext_customer_support.csv").open(encoding="utf-8", newline="") as file:
        texts += [found["response"] for found in csv.DictReader(file)]
    for path in sorted((data / "boolq").glob("*.jsonl")):
        texts += [json.loads(line)["passage"] for line in path.read_text(encoding="utf-8").splitlines()]
    return texts


def _chat(prompt: str, answer: str) -> Example:
    return Example(messages=(Message(role="user", content=prompt), Message(role="assistant", content=answer)), source="bench:1")


PARTS: Sequence[Callable[[Path], Iterator[Row]]] = (pii_rows, secrets_rows, language_rows, noise_rows, tag_rows, remnant_rows, rate_rows)


def rows(data: Path = DATA) -> list[Row]:
    """All figures."""
    return [found for part in PARTS for found in part(data)]


def main() -> None:
    """Print them."""
    wanted = sys.argv[1:]
    for part in PARTS:
        if not wanted or part.__name__.removesuffix("_rows") in wanted:
            for found in part(DATA):
                print(f"{found.case:44} {found.metric:24} {found.value:12.4f} {found.unit}")


if __name__ == "__main__":
    main()
