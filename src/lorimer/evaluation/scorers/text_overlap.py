"""How much of a wanted text is in an answer: ROUGE, chrF and SQuAD's token F1, each in [0, 1].

`spec["references"]` may name further wanted texts beside the target: the best of them counts. They measure wording, not truth.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from lorimer.evaluation.scorers.score import Score
from lorimer.evaluation.task import Sample

CHRF_ORDER = 6
CHRF_BETA = 2
_WORD = re.compile(r"[^\W_]+")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_1(answer: str, sample: Sample) -> Score:
    """F1 of single words: ROUGE-1 of Lin 2004 (ACL workshop on text summarisation), without stemming.

    Words are runs of letters and digits in any script, in lower case. A script that writes without spaces, such as Chinese, has no
    words here: use `chrf`.
    """
    return _best(rouge_1_f1, answer, sample, _words)


def rouge_l(answer: str, sample: Sample) -> Score:
    """F1 of the longest common subsequence of words: ROUGE-L of Lin 2004 over the whole text, words as for `rouge_1`."""
    return _best(rouge_l_f1, answer, sample, _words)


def chrf(answer: str, sample: Sample) -> Score:
    """chrF2: F of character n-grams of length 1 to 6 with recall counting four times (Popovic 2015, WMT), spaces left out.

    As sacrebleu computes it for one sentence (`nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no`), divided by 100.
    """
    return _best(chrf2, answer, sample, _squeeze)


def token_f1(answer: str, sample: Sample) -> Score:
    """F1 of the bags of words after SQuAD's normalisation: lower case, no ASCII punctuation, no articles (Rajpurkar et al. 2016).

    Where one of the two has no words left, they must both have none (Rajpurkar et al. 2018): an empty target wants no answer.
    """
    return _best(token_f1_of, answer, sample, None)


def rouge_1_f1(answer: str, wanted: str) -> float:
    """ROUGE-1 F1 of two texts."""
    found, target = _words(answer), _words(wanted)
    return _f1((Counter(found) & Counter(target)).total(), len(found), len(target))


def rouge_l_f1(answer: str, wanted: str) -> float:
    """ROUGE-L F1 of two texts."""
    found, target = _words(answer), _words(wanted)
    return _f1(common_subsequence(found, target), len(found), len(target))


def chrf2(answer: str, wanted: str) -> float:
    """chrF2 of two texts."""
    found, target = _squeeze(answer), _squeeze(wanted)
    precision = recall = 0.0
    num_orders = 0
    for order in range(1, CHRF_ORDER + 1):
        num_found, num_target = len(found) - order + 1, len(target) - order + 1
        if num_found <= 0 or num_target <= 0:
            break  # an order that one of the two is too short for does not count
        num_common = (_grams(found, order) & _grams(target, order)).total()
        precision += num_common / num_found
        recall += num_common / num_target
        num_orders += 1
    if precision == 0 or recall == 0:
        return 0.0
    precision, recall = precision / num_orders, recall / num_orders
    weight = CHRF_BETA**2
    return min(1.0, (1 + weight) * precision * recall / (weight * precision + recall))


def token_f1_of(answer: str, wanted: str) -> float:
    """SQuAD's token F1 of two texts."""
    found, target = _squad_tokens(answer), _squad_tokens(wanted)
    if not found or not target:
        return float(found == target)
    return _f1((Counter(found) & Counter(target)).total(), len(found), len(target))


def common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table held in the bits of one integer (Hyyro 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(left):
        places[word] = places.get(word, 0) | (1 << index)
    all_ones = (1 << len(left)) - 1
    row = all_ones
    for word in right:
        matching = row & places.get(word, 0)
        row = ((row + matching) | (row - matching)) & all_ones
    return len(left) - row.bit_count()


def _best(measure: Callable[[str, str], float], answer: str, sample: Sample, parts: Callable[[str], object] | None) -> Score:
    references = sample.spec.get("references", [])
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        return Score(value=None, answer=answer, explanation=f"spec references is a list of texts, not {references!r}"[:200])
    wanted = [text for text in (sample.target, *references) if parts is None or parts(text)]
    if not wanted:
        return Score(value=None, answer=answer, explanation="the target holds nothing that is counted")
    value = max(measure(answer, text) for text in wanted)
    return Score(value=value, answer=answer, explanation="" if value == 1 else f"overlap {value:.3f} with the wanted text")


def _f1(num_common: int, num_found: int, num_target: int) -> float:
    """The harmonic mean of num_common / num_found and num_common / num_target."""
    return 2 * num_common / (num_found + num_target) if num_common else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def _squad_tokens(text: str) -> list[str]:
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()
