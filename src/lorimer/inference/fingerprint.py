"""What an adapter answers to a few fixed prompts: recorded when it is registered, asked again whenever it is loaded.

A digest says that files are those that were registered. A fingerprint says that the engine does with them what it did then: that they are
applied at all, to the right base, behind the right template. Engines serve the bare base, without a word, when one of these goes wrong.
It is computed by the code that serves. It knows nothing of registries, and of files only its own.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from lorimer.data.example import Message
from lorimer.errors import AdapterError, IntegrityError
from lorimer.inference.batched_lora import BatchedLoRA, RowRange
from lorimer.inference.composition import alone
from lorimer.inference.decoder import Decoder
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.base_text import BaseText, text_of
from lorimer.model.chat import Renderer
from lorimer.model.lora import LoRA, LoRAWeights, row_norms
from lorimer.storage import canonical_json, write_bytes

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "fingerprint.json"
PROBES_VERSION = 1
PROBES = (
    "The capital of France is",
    "Guten Tag, ich habe eine Frage zu",
    "Je voudrais savoir si",
    "El cliente dice que",
    "日本で一番高い山は",
    "مرحبا، أريد أن",
    '{"name": "',
)
QUESTION = "What can you do for me?"
"""The probe that is rendered as a conversation."""
NUM_TOP = 8
MAX_PROBE_TOKENS = 1024  # of all together: a step of the engine waits for them
MAX_KEPT = 4  # of the base's answers: fingerprints of one version ask the same, but for a date in the template
EPSILON = {"float32": 2**-10, "float16": 2**-10, "bfloat16": 2**-7}
"""What one rounding makes of a number; float32 counts as the TF32 that some processors multiply in."""
NUM_ROUNDINGS = 5
"""So many roundings of the base's largest logits are no difference. In bfloat16 other kernels, other processors and float32 itself made 0.3
to 1.2 of them, the nearest other version of an adapter 11 and the bare base 21 (dev/LOG.md)."""
MAX_CONTROL = 0.1  # of its largest logits: a base that is further off from what it answered is another one
NORM_TOLERANCE = 1e-3  # of a layer's norm; the same files give the same norm, other versions are a percent off or more
NO_CHANGE = 1e-6  # of a weight's own norm: what DoRA's magnitudes are off by when nothing was learned

Effect = Literal["visible", "hidden", "none"]
TokenId = Annotated[int, Field(ge=0)]
Top = Annotated[tuple[tuple[TokenId, float], ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """The likeliest next tokens after one probe, with their log-probabilities, from the likeliest."""

    prompt_ids: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    adapter: Top
    base: Top


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """An adapter's answers beside its base's."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    probes_version: int
    adapter_digest: str
    base_digest: str
    template_digest: str
    dtype: str
    """Of the base that answered."""
    effect: Effect
    """Whether the adapter changes the probes: `visible`; `hidden` where it adds to weights but not to answers, beyond rounding; `none`
    where it adds nothing at all."""
    norms: dict[str, float]
    """By layer, the Frobenius norm of what the adapter adds to its weight."""
    probes: Annotated[tuple[ProbeAnswer, ...], Field(min_length=1)]

    def to_bytes(self) -> bytes:
        """As its file holds it."""
        return canonical_json(asdict(self)) + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Whether an adapter that was loaded is the one that was registered."""

    reason: str | None
    """Why not; None if it is."""
    difference: float = math.nan
    """Root mean square of log-probabilities from the recorded ones, in nats."""
    allowed: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a fingerprint's probes are answered now beside what they were; root mean squares of log-probabilities, in nats."""

    control: float
    """How far the base is from what it answered."""
    difference: float
    """How far the adapter is from what it answered."""
    effect: float
    """How far the base is from what the adapter answered."""
    apart: float
    """How far the adapter is from the base, both now, over the tokens that are likeliest to the base."""
    size: float
    """How far the likeliest token stands above the average one: as large as logits are, which are rounded."""


def judge(recorded: Fingerprint, found: Replayed, *, dtype: str) -> Proof:
    """Whether it is the adapter that was registered.

    What the base answers now beside what it answered then says how much of a difference is the machine's.
    """
    rounding = NUM_ROUNDINGS * max(EPSILON[dtype], EPSILON[recorded.dtype]) * found.size
    allowed = max(rounding, 3 * found.control)
    if found.effect > allowed:  # it can be told from the base, so it has to be nearer to itself than to the base
        allowed = min(allowed, found.effect / 2)
    reason = None
    if not found.control <= MAX_CONTROL * found.size:
        reason = f"the base itself answers otherwise than it did when this was registered, by {found.control:.3g} nats"
    elif not found.difference <= allowed:
        reason = f"it answers otherwise than when it was registered, by {found.difference:.3g} nats where rounding makes {allowed:.3g}"
        if recorded.effect == "visible" and found.apart <= rounding:
            reason = "it has no effect: it answers as the bare base does"
    return Proof(reason=reason, difference=found.difference, allowed=allowed)


def describe_unlike(recorded: Fingerprint, *, digest: str, base: BaseText, norms: Mapping[str, float] | None = None) -> str | None:
    """What is seen to be wrong before anything is asked; None if nothing is. Without `norms`, who answers does not tell them."""
    for what, found, wanted in (
        ("adapter", digest, recorded.adapter_digest),
        ("base", base.digest, recorded.base_digest),
        ("chat template", base.renderer.template_digest, recorded.template_digest),
    ):
        if found != wanted:
            return f"its fingerprint is of {what} {wanted[:12]!r}, this is {found[:12]!r}"
    if recorded.dtype not in EPSILON or not _can_ask(recorded, base.vocabulary_len):
        return "its fingerprint cannot be replayed on this base"
    texts = [probe.prompt_ids for probe in recorded.probes][: len(PROBES)]  # without the conversation: templates may tell the date
    if recorded.probes_version == PROBES_VERSION and texts != [base.renderer.tokenise_prompt(text) for text in PROBES]:
        return "the probes are other tokens than when it was registered: the base's tokenizer changed"
    if norms is None:
        return None
    off = [name for name in {**recorded.norms, **norms} if not _is_near(norms.get(name, 0.0), recorded.norms.get(name, 0.0))]
    if off:
        found_norm, wanted_norm = norms.get(off[0], 0.0), recorded.norms.get(off[0], 0.0)
        return f"{len(off)} layers have other weights, {off[0]!r} first (norm {found_norm:.4g}, registered was {wanted_norm:.4g})"
    return None


def _can_ask(recorded: Fingerprint, vocabulary_len: int) -> bool:
    named = [i for probe in recorded.probes for i in (*probe.prompt_ids, *(i for i, _ in (*probe.adapter, *probe.base)))]
    return max(named) < vocabulary_len and sum(len(probe.prompt_ids) for probe in recorded.probes) <= MAX_PROBE_TOKENS


class Prober:
    """Asks the probes of a base, alone and through an adapter, as one short prefill."""

    def __init__(self, base: Base, decoder: Decoder, logits: Callable[[Tensor], Tensor] | None = None) -> None:
        self.base, self.decoder, self.logits = base, decoder, logits or base.head.logits
        self._text = text_of(base)
        self._base_answers: dict[tuple[tuple[int, ...], ...], Tensor] = {}

    def take(self, digest: str, lora: LoRA, norms: Mapping[str, float]) -> Fingerprint:
        """The fingerprint of an adapter, prepared as inference wants it, whose changes have these norms.

        Raises:
            AdapterError: if its answers are not numbers.
        """
        prompts = probe_prompts(self.base.renderer)
        base, own = self._ask_base(prompts), self._ask(prompts, lora)
        if not bool(torch.isfinite(own).all()):
            raise AdapterError(f"adapter {digest[:12]!r} answers with numbers that are not finite: train it again")
        tops = [_top(row) for row in own]
        dtype = _dtype_name(self.base)
        is_visible = _difference(base, tops) > NUM_ROUNDINGS * EPSILON[dtype] * _size(base)
        effect: Effect = "none" if not any(norms.values()) else "visible" if is_visible else "hidden"
        if effect == "hidden":
            logger.warning(
                "adapter %s changes %d layers, but not what the probes are answered: it learned next to nothing, or is not applied",
                digest[:12],
                sum(norm > 0 for norm in norms.values()),
            )
        answers = zip(prompts, tops, (_top(row) for row in base), strict=True)
        return Fingerprint(
            probes_version=PROBES_VERSION,
            adapter_digest=digest,
            base_digest=self.base.digest,
            template_digest=self.base.renderer.template_digest,
            dtype=dtype,
            effect=effect,
            norms={name: float(f"{norm:.6g}") for name, norm in norms.items()},
            probes=tuple(ProbeAnswer(prompt_ids=ids, adapter=top, base=of_base) for ids, top, of_base in answers),
        )

    def prove(self, digest: str, lora: LoRA, norms: Mapping[str, float], recorded: Fingerprint) -> Proof:
        """Replay a fingerprint; see `judge`."""
        if reason := describe_unlike(recorded, digest=digest, base=self._text, norms=norms):
            return Proof(reason=reason)
        prompts = tuple(probe.prompt_ids for probe in recorded.probes)
        base, own = self._ask_base(prompts), self._ask(prompts, lora)
        tops = [probe.adapter for probe in recorded.probes]
        found = Replayed(
            control=_difference(base, [probe.base for probe in recorded.probes]),
            difference=_difference(own, tops),
            effect=_difference(base, tops),
            apart=_difference(own, [_top(row) for row in base]),
            size=_size(base),
        )
        return judge(recorded, found, dtype=_dtype_name(self.base))

    def _ask_base(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """The base's answers, kept: they are the same for every adapter."""
        key = tuple(prompts)
        if key not in self._base_answers:
            if len(self._base_answers) == MAX_KEPT:
                self._base_answers.clear()
            self._base_answers[key] = self._ask(prompts, None)
        return self._base_answers[key]

    @torch.inference_mode()
    def _ask(self, prompts: Sequence[tuple[int, ...]], lora: LoRA | None) -> Tensor:
        """Log-probabilities (n, V) of what follows each prompt, float32."""
        device, lengths = self.base.device, [len(ids) for ids in prompts]
        ids = torch.tensor([i for prompt in prompts for i in prompt], device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        name = None if lora is None else "probed"
        everywhere = RowRange(start=0, stop=len(ids), composition=alone(name))
        changes = BatchedLoRA(None, {} if lora is None else {"probed": lora}, [everywhere])
        hidden = self.decoder.run(ids, positions, PackedSegments(whole(lengths), device), changes)  # (T, h)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        return self.logits(hidden[last]).float().log_softmax(-1)


def probe_prompts(renderer: Renderer) -> tuple[tuple[int, ...], ...]:
    """The probes as this base reads them."""
    conversation = renderer.render_prompt([Message(role="user", content=QUESTION)])
    return (*(renderer.tokenise_prompt(text) for text in PROBES), conversation)


def norms_of(lora: LoRA, dense_weight: Callable[[str], Tensor]) -> dict[str, float]:
    """By layer, how much an adapter read from its files adds to the weight: a Frobenius norm, in double precision."""
    return {name: _norm_of(own, partial(dense_weight, name)) for name, own in lora.weights.items()}


def _norm_of(own: LoRAWeights, dense_weight: Callable[[], Tensor]) -> float:
    a, b = (factor.detach().double() for factor in own.factors)
    if own.magnitude is None:
        return abs(own.scale) * math.sqrt(max(0.0, float(((a @ a.T) * (b.T @ b)).sum())))  # ||b a|| without making b a
    weight = dense_weight().float()
    adapted = weight + own.scale * (own.b.detach().float() @ own.a.detach().float())
    change = float((adapted * (own.magnitude.detach() / row_norms(adapted))[:, None] - weight).norm())
    return change if change > NO_CHANGE * float(weight.norm()) else 0.0


def _is_near(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= NORM_TOLERANCE * max(found, wanted)


def _difference(answers: Tensor, tops: Sequence[Top]) -> float:
    """Root mean square difference of log-probabilities (n, V) from recorded ones, over the recorded tokens, in nats.

    Rounding moves logits, by as much whether a token is likely or not: so log-probabilities are compared, where probabilities would see the
    likeliest token alone; and all of them together, where a single one may be far off.
    """
    rows = torch.tensor([row for row, top in enumerate(tops) for _ in top], device=answers.device)
    ids = torch.tensor([i for top in tops for i, _ in top], device=answers.device)
    wanted = torch.tensor([logprob for top in tops for _, logprob in top], device=answers.device)
    return float((answers[rows, ids] - wanted).square().mean().sqrt())


def _size(answers: Tensor) -> float:
    """How far the likeliest token stands above the average one in log-probabilities (n, V): as large as logits are, which are rounded."""
    return float((answers.amax(1) - answers.mean(1)).square().mean().sqrt())


def _top(logprobs: Tensor) -> Top:
    """logprobs (V) -> the likeliest tokens."""
    values, ids = logprobs.topk(min(NUM_TOP, len(logprobs)))
    return tuple((i, round(value, 4)) for i, value in zip(ids.tolist(), values.tolist(), strict=True))


def _dtype_name(base: Base) -> str:
    return str(base.dtype).removeprefix("torch.")


_FORMAT = TypeAdapter(Fingerprint)


def write_fingerprint(folder: Path, fingerprint: Fingerprint) -> None:
    """Keep a fingerprint beside its adapter's files."""
    write_bytes(folder / FINGERPRINT_FILE, fingerprint.to_bytes())


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint beside an adapter's files; None if none was recorded.

    Raises:
        IntegrityError: if there is one that cannot be read.
    """
    path = folder / FINGERPRINT_FILE
    try:
        return _FORMAT.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError, RecursionError) as exc:
        raise IntegrityError(f"fingerprint {str(path)!r} cannot be read ({type(exc).__name__}): restore it, or register again") from exc
