"""Rules over a whole set: label noise against known truth, balance, conflicts, style."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorimer.data.balance import find_conflicts, measure_balance
from lorimer.data.example import Example
from lorimer.data.hashed_text import fit, hash_texts, out_of_fold, take
from lorimer.data.label_noise import find_label_noise, find_suspects
from lorimer.data.style import count_words, describe_style, find_slips, slips_in
from lorimer.data.toxicity import Toxicity
from lorimer.errors import DataError

TOPICS = {"pay": "invoice bill money amount", "ship": "parcel courier truck delivery", "login": "password account user email"}


def topical(num_rows: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts whose words tell their label."""
    rng = np.random.default_rng(seed)
    labels = [str(label) for label in rng.choice(list(TOPICS), num_rows)]
    return [" ".join(rng.choice(TOPICS[label].split(), 6)) + " please now" for label in labels], labels


# label noise


def test_label_noise_finds_what_was_changed() -> None:
    texts, labels = topical(300)
    changed = set(range(0, 300, 20))
    noisy = [next(other for other in TOPICS if other != label) if index in changed else label for index, label in enumerate(labels)]
    report = find_label_noise(texts, noisy)
    found = set(report.suspects.tolist())
    assert len(found & changed) >= 0.7 * max(len(found), len(changed))
    suggested = dict(zip(report.suspects.tolist(), report.suggested, strict=True))
    assert all(suggested[index] == labels[index] for index in found & changed)
    assert report.accuracy > 0.9
    assert report.scores[sorted(changed)].max() < 0.5


def test_label_noise_is_the_same_each_time() -> None:
    texts, labels = topical(120)
    first, second = (find_label_noise(texts, labels, seed=3) for _ in range(2))
    assert np.array_equal(first.scores, second.scores)


def test_label_noise_leaves_rare_labels_unjudged() -> None:
    texts, labels = topical(100)
    report = find_label_noise([*texts, "quite alone", "", "日本語のテキスト"], [*labels, "odd", "pay", "ship"])
    assert report.num_unjudged == 1
    assert np.isnan(report.scores[100])
    assert not np.isnan(report.scores[101])


@pytest.mark.parametrize("labels", [[], ["a"], ["a"] * 20, [f"l{i}" for i in range(20)]])
def test_label_noise_of_nothing_to_compare_is_empty(labels: list[str]) -> None:
    report = find_label_noise(["text"] * len(labels), labels)
    assert (len(report.suspects), report.num_judged) == (0, 0)
    with pytest.raises(DataError, match="one label a text"):
        find_label_noise(["text"], [])


@given(st.lists(st.tuples(st.text(max_size=20), st.sampled_from("abc")), max_size=40))
def test_label_noise_of_strangers_rows_never_raises(rows: list[tuple[str, str]]) -> None:
    report = find_label_noise([text for text, _ in rows], [label for _, label in rows])
    assert report.num_judged + report.num_unjudged == len(rows)


def test_suspects_agree_with_people_on_known_errors(shared_data: Path) -> None:
    folder = shared_data / "label_errors"
    probabilities = np.load(folder / "20news_test_set_pyx.npy", allow_pickle=False)
    labels = np.load(folder / "20news_test_set_original_labels.npy", allow_pickle=False).astype(np.int64)
    votes = json.loads((folder / "20news_mturk.json").read_text(encoding="utf-8"))
    wrong = {row["id"] for row in votes if row["mturk"]["given"] < 3}
    suspects = set(find_suspects(probabilities, labels).tolist())
    checked = suspects & {row["id"] for row in votes}
    assert len(checked & wrong) / len(checked) > 0.85
    assert len(checked & wrong) / len(wrong) > 0.65


# the classifier


def test_gradient_is_that_of_the_loss() -> None:
    texts, labels = topical(12)
    rows, names = hash_texts(texts), sorted(TOPICS)
    given_labels = np.array([names.index(label) for label in labels], np.int64)
    weights, bias = fit(rows, given_labels, np.arange(12), 3, epochs=60)
    dense = np.zeros((12, rows.columns.max() + 1), np.float32)
    for index in range(12):
        dense[index, rows.columns[rows.starts[index] : rows.starts[index + 1]]] = rows.values[rows.starts[index] : rows.starts[index + 1]]
    assert np.array_equal((dense @ weights + bias).argmax(1), given_labels)
    assert np.allclose((dense**2).sum(1), 1, atol=1e-5)


def test_take_picks_rows_in_order() -> None:
    rows = hash_texts(["a b", "", "c d e"])
    taken = take(rows, np.array([2, 1, 0]))
    assert np.array_equal(np.diff(taken.starts), [5, 0, 3])
    assert np.array_equal(taken.columns[:5], rows.columns[3:])


def test_out_of_fold_probabilities_are_shares() -> None:
    texts, labels = topical(40)
    probabilities = out_of_fold(hash_texts(texts), np.array([sorted(TOPICS).index(label) for label in labels], np.int64), 3)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


# balance and conflicts


def test_balance_of_even_and_uneven_labels() -> None:
    assert measure_balance(["a", "b"] * 10).evenness == pytest.approx(1)
    assert measure_balance(["a", "b"] * 10).describe() == ""
    uneven = measure_balance(["a"] * 97 + ["b"] * 3)
    assert uneven.evenness == pytest.approx(0.194, abs=0.001)
    assert uneven.rare == ("b",)
    assert uneven.ratio == pytest.approx(97 / 3)
    assert uneven.describe() == "labels are uneven: 'a' has 97 rows, 'b' has 3; 1 of 2 labels have fewer than 10 rows ('b')"
    assert measure_balance(["a"]).evenness == 1
    with pytest.raises(DataError, match="no labels"):
        measure_balance([])


def test_conflicts_among_near_equal_inputs() -> None:
    found = find_conflicts([0, 1, 0, 2, 0, 1], ["x", "y", "x", "z", "q", "y"])
    assert found.indices.tolist() == [0, 2, 4]
    assert (found.num_clusters, found.minority.tolist()) == (1, [4])
    assert find_conflicts([0, 1], ["a", "b"]).num_clusters == 0
    with pytest.raises(DataError, match="one label a row"):
        find_conflicts([0], [])


# style


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("i wanna cancel it", {"colloquial"}),
        ("Could you please cancel it?", {"polite", "question"}),
        ("cancel purchase 42", {"keywords"}),
        ("I have cancelled it.", set()),
        ("I need it  now", {"spacing"}),
    ],
)
def test_style_of_a_message(text: str, said: set[str]) -> None:
    assert set(describe_style(text)) == said


def test_slips_are_rare_words_near_frequent_ones() -> None:
    texts = ["cancel the order"] * 30 + ["cancle the ordre", "cancelthe order", "orders cancelled"]
    slips = find_slips(count_words(texts))
    assert {slip.word: slip.meant for slip in slips.values()} == {"cancle": "cancel", "ordre": "order", "cancelthe": "cancel the"}
    assert [slip.meant for slip in slips_in("I cancle", slips)] == ["cancel"]


def test_tags_of_support_messages_are_found(shared_data: Path) -> None:
    with (shared_data / "bitext_customer_support" / "bitext_customer_support.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["instruction"], row["tags"]) for row in csv.DictReader(file)]
    slips = find_slips(count_words(text for text, _ in rows))
    toxicity = Toxicity()
    found = {
        "W": [bool(toxicity(Example(text=text, source="")).reason) for text, _ in rows],
        "Z": [bool(slips_in(text, slips)) or "spacing" in describe_style(text) for text, _ in rows],
        "Q": ["colloquial" in describe_style(text) for text, _ in rows],
    }
    for tag, (precision, recall) in {"W": (0.99, 0.99), "Z": (0.95, 0.6), "Q": (0.99, 0.75)}.items():
        right = sum(hit and tag in tags for hit, (_, tags) in zip(found[tag], rows, strict=True))
        assert right / sum(found[tag]) >= precision
        assert right / sum(tag in tags for _, tags in rows) >= recall
