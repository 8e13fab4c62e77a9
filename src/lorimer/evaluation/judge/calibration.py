"""Does a judge agree with people? It is asked what people have answered already; what comes out decides whether it may decide a gate."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean, median, variance
from typing import Any, Literal

from lorimer.errors import IntegrityError
from lorimer.evaluation.gates import MAX_UNSCORED_SHARE, Check
from lorimer.evaluation.judge.judge import Reading, read_items
from lorimer.evaluation.judge.labels import MIN_LABELS, Label
from lorimer.evaluation.judge.record import Judge, read_record, write_record
from lorimer.evaluation.judge.spec import VALUES, JudgeSpec
from lorimer.evaluation.statistics.proportions import CONFIDENCE, Interval, Proportion, proportion_of
from lorimer.storage import digest_of

Weights = Literal["none", "linear", "quadratic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kappa:
    """Agreement beyond chance: 1 is full, 0 what two who do not look would reach."""

    value: float
    interval: Interval
    weights: Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """A mean difference between judge and people, on a scale from 0 (worst) to 1 (best)."""

    value: float
    interval: Interval
    num_items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A judge beside people."""

    labels_digest: str
    num_labels: int
    num_unscored: int
    kappa: Kappa | None
    """None where nothing can be said: no verdicts, or all of one kind on both sides."""
    agreement: Proportion
    """Share of scored items with the person's own label."""
    confusion: dict[str, dict[str, int]]
    """By the person's label, then by the judge's."""
    length_bias: Bias | None
    """How much more than people it gives the longer answer; of single answers, those longer than the median against the others."""
    num_asked_twice: int
    """Pairs with a verdict in both orders."""
    num_inconsistent: int
    """Those where the two contradict each other."""
    first_share: float | None
    """Of its verdicts for one of two answers, the share for the one that stood first; 0.5 is fair."""

    @property
    def unscored_share(self) -> float:
        """Labels without a verdict."""
        return self.num_unscored / self.num_labels

    def to_json(self) -> dict[str, Any]:
        """What the judge's record holds."""
        return asdict(self)


def cohen_kappa(table: Sequence[Sequence[int]], weights: Weights = "none", confidence: float = CONFIDENCE) -> Kappa | None:
    """Kappa of a square table of counts (one rater's labels by row, the other's by column); None where chance alone agrees fully.

    Cohen 1960, Educ. Psychol. Meas. 20:37-46; weighted, Cohen 1968, Psychol. Bull. 70:213-220. The interval is the large-sample one of
    Fleiss, Cohen and Everitt 1969, Psychol. Bull. 72:323-327, cut to [-1, 1]; where the raters agree on every item it has no width.
    """
    size, total = len(table), sum(map(sum, table))
    if not total or size < 2:
        return None
    share = [[count / total for count in row] for row in table]
    rows = [sum(row) for row in share]
    columns = [sum(row[j] for row in share) for j in range(size)]
    weight = [[_weight(i, j, size, weights) for j in range(size)] for i in range(size)]
    places = [(i, j) for i in range(size) for j in range(size)]
    observed = sum(weight[i][j] * share[i][j] for i, j in places)
    expected = sum(weight[i][j] * rows[i] * columns[j] for i, j in places)
    if expected >= 1 - 1e-12:
        return None
    value = (observed - expected) / (1 - expected)
    of_row = [sum(weight[i][j] * columns[j] for j in range(size)) for i in range(size)]
    of_column = [sum(weight[i][j] * rows[i] for i in range(size)) for j in range(size)]
    spread = sum(
        share[i][j] * (weight[i][j] * (1 - expected) - (of_row[i] + of_column[j]) * (1 - observed)) ** 2 for i, j in places
    ) - (observed * expected - 2 * expected + observed) ** 2  # fmt: skip
    error = math.sqrt(max(0.0, spread) / total) / (1 - expected) ** 2
    return Kappa(value=value, interval=_around(value, error, confidence), weights=weights)


def calibrate(judge: Judge, labels: Sequence[Label], on_item: Callable[[], None] = lambda: None) -> Calibration:
    """Ask the judge what people were asked, compare, and record it; `on_item` is called after each item.

    Stopped, the same call goes on where it was.

    Raises:
        LorimerError: if the endpoint is down, or another version answers.
    """
    readings = []
    for reading in read_items(judge, [label.item for label in labels]):
        readings.append(reading)
        on_item()
    calibration = compare_labels(judge.spec, labels, readings)
    write_record(judge, calibration=calibration.to_json())
    return calibration


def compare_labels(spec: JudgeSpec, labels: Sequence[Label], readings: Sequence[Reading]) -> Calibration:
    """A judge's readings beside people's labels. Kappa is weighted by the square of the distance on 1-5, and unweighted else."""
    both = [(label, reading) for label, reading in zip(labels, readings, strict=True) if reading.label is not None]
    count = Counter((label.label, str(reading.label)) for label, reading in both)
    table = [[count[person, judge] for judge in spec.allowed] for person in spec.allowed]
    pairs = [reading for reading in readings if len(reading.said) == 2 and None not in reading.said]
    said = [verdict for reading in readings if len(reading.said) == 2 for verdict in reading.said if verdict in ("A", "B")]
    return Calibration(
        labels_digest=digest_of([[label.item.question, label.item.reference, *label.item.answers, label.label] for label in labels]),
        num_labels=len(labels),
        num_unscored=len(labels) - len(both),
        kappa=cohen_kappa(table, "quadratic" if spec.scale == "1-5" else "none"),
        agreement=proportion_of(label.label == reading.label for label, reading in both),
        confusion={person: {judge: count[person, judge] for judge in spec.allowed} for person in spec.allowed},
        length_bias=_length_bias_of_pairs(both) if spec.kind == "pair" else _length_bias_of_answers(both),
        num_asked_twice=len(pairs),
        num_inconsistent=sum(reading.is_inconsistent for reading in pairs),
        first_share=said.count("A") / len(said) if said else None,
    )


def find_calibration(judge: Judge) -> Calibration | None:
    """How a judge was calibrated as it is now; None if it never was.

    Raises:
        IntegrityError: if its record is damaged.
    """
    value = read_record(judge.record_path)["calibration"] if judge.record_path.exists() else None
    if value is None:
        return None
    try:
        kappa, bias, agreement = value["kappa"], value["length_bias"], value["agreement"]
        return Calibration(
            **{
                **value,
                "kappa": kappa and Kappa(**{**kappa, "interval": Interval(**kappa["interval"])}),
                "length_bias": bias and Bias(**{**bias, "interval": Interval(**bias["interval"])}),
                "agreement": Proportion(**{**agreement, "interval": Interval(**agreement["interval"])}),
            }
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise IntegrityError(f"the judge's record {str(judge.record_path)!r} is damaged ({exc!r}): calibrate the judge again") from exc


def find_objection(spec: JudgeSpec, calibration: Calibration | None) -> str:
    """Why a judge may not decide a gate; empty if it may."""
    if calibration is None:
        return f"Judge {spec.judge!r} was never calibrated against people's labels."
    if calibration.num_labels < MIN_LABELS:
        return f"Judge {spec.judge!r} was calibrated on {calibration.num_labels} labels; {MIN_LABELS} are needed."
    if calibration.unscored_share > MAX_UNSCORED_SHARE:
        return (
            f"Judge {spec.judge!r} gave no verdict on {calibration.num_unscored} of the {calibration.num_labels} items it was calibrated "
            f"on, more than {MAX_UNSCORED_SHARE:.0%}."
        )
    if calibration.kappa is None or not math.isfinite(calibration.kappa.value):
        return f"Judge {spec.judge!r} has no kappa: it, or the people, gave every item the same label."
    if not calibration.kappa.value >= spec.min_kappa:
        ends = calibration.kappa.interval
        return (
            f"Judge {spec.judge!r} agrees with people too little: kappa {calibration.kappa.value:.2f} (95% interval {ends.low:.2f} to "
            f"{ends.high:.2f}), asked for is {spec.min_kappa:.2f}."
        )
    return ""


def check_judge(judge: Judge) -> Check:
    """The check that stands before every other one of a judged task: ERROR unless the judge, as it is now, agrees with people."""
    calibration = find_calibration(judge)
    objection = find_objection(judge.spec, calibration)
    kappa = calibration.kappa if calibration else None
    return Check(
        name="judge",
        verdict="ERROR" if objection else "PASS",
        value=kappa.value if kappa else None,
        interval=kappa.interval if kappa else None,
        threshold=judge.spec.min_kappa,
        num_items=calibration.num_labels - calibration.num_unscored if calibration else 0,
        reason=objection or f"Judge {judge.spec.judge!r} agrees with people beyond chance: kappa {kappa.value if kappa else 0:.2f}.",
        remedy="Its scores are advice only; write a clearer rubric or ask a better model, then `lorimer judges calibrate`."
        if objection
        else "",
    )


def _length_bias_of_pairs(both: Sequence[tuple[Label, Reading]]) -> Bias | None:
    """Mean of what the judge gives the longer answer of a pair less what people give it."""
    differences = []
    for label, reading in both:
        first, second = (len(answer or "") for answer in label.item.answers)
        if first != second:
            sign = 1 if first > second else -1
            differences.append(sign * _above(label, reading))
    return _bias([differences])


def _length_bias_of_answers(both: Sequence[tuple[Label, Reading]]) -> Bias | None:
    """Judge less people on answers longer than the median, less the same on the others."""
    lengths = [len(label.item.answers[0] or "") for label, _ in both]
    if not lengths:
        return None
    middle = median(lengths)
    long = [_above(*one) for one, length in zip(both, lengths, strict=True) if length > middle]
    short = [_above(*one) for one, length in zip(both, lengths, strict=True) if length <= middle]
    return _bias([long, short])


def _above(label: Label, reading: Reading) -> float:
    """How much more the judge gives than the person, on the scale from 0 to 1."""
    return VALUES[str(reading.label)] - VALUES[label.label]


def _bias(samples: Sequence[Sequence[float]]) -> Bias | None:
    """The mean of one sample, or the difference of the means of two, with its large-sample interval."""
    if any(len(sample) < 2 for sample in samples):
        return None
    value = fmean(samples[0]) - (fmean(samples[1]) if len(samples) == 2 else 0.0)
    error = math.sqrt(sum(variance(sample) / len(sample) for sample in samples))
    return Bias(value=value, interval=_around(value, error, CONFIDENCE), num_items=sum(map(len, samples)))


def _around(value: float, error: float, confidence: float) -> Interval:
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Interval(low=max(-1.0, value - half), high=min(1.0, value + half), confidence=confidence)


def _weight(i: int, j: int, size: int, weights: Weights) -> float:
    if weights == "none":
        return float(i == j)
    distance = abs(i - j) / (size - 1)
    return 1 - (distance if weights == "linear" else distance**2)
