"""Which adapter learned from prompts like this one: asked of the base's own hidden states, no second model.

Every adapter has a profile, where its training prompts lie among the mean hidden states of prompts: a few centres and how far the prompts
are from them. A request is compared with all centres by cosine, after the mean of all profiles is taken away and every direction divided by
how much it varies; else a few directions that are large in every prompt decide alone. A background of everyday prompts is one of the
profiles, so that a library of one adapter does not attract everything. It knows nothing of registries, and of files only its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lorimer.data.example import Message
from lorimer.errors import IntegrityError
from lorimer.inference.batched_lora import BatchedLoRA
from lorimer.inference.decoder import Decoder
from lorimer.model.attention import PackedSegments, whole
from lorimer.model.base import Base
from lorimer.model.chat import Rendered, Renderer

ROUTING_FILE = "routing.safetensors"
PROFILE_VERSION = "1"
ROUTED_LEN = 512  # tokens: what a prompt is about is seen by then
NUM_PROMPTS, NUM_PROMPT_TOKENS = 64, 8192  # for a profile, at most
TOKENS_PER_RUN = 2048
NUM_CENTRES, NUM_ROUNDS = 4, 20
MIN_SHARE = 0.65  # of the cosine that the adapter's own prompts have
MIN_MARGIN = 0.06  # of cosine, before the next nearest; with these, of twelve adapters on real data 0.2% of requests met a wrong one
TINY = 1e-6

BACKGROUND = (
    "What is the capital of Australia?",
    "Write a short poem about the sea.",
    "How do I boil an egg?",
    "Explain how a vaccine works, in simple words.",
    "Translate into French: Where is the station?",
    "Give me three ideas for a birthday present.",
    "What is 17 times 23?",
    "Summarise the plot of Romeo and Juliet in two sentences.",
    "Write a Python function that reverses a list.",
    "Who wrote The Old Man and the Sea?",
    "Hello!",
    "Thank you, that was helpful.",
    "What should I cook tonight with rice and tomatoes?",
    "Correct the grammar: he go to school every days.",
    "What are the advantages of working from home?",
    "Tell me a joke.",
    "Is it better to rent or to buy a flat?",
    "Plan a weekend in Rome for two people.",
    "Why is the sky blue?",
    "Write an e-mail that asks my landlord to repair the heating.",
    "List the planets of the solar system.",
    "What does the word serendipity mean?",
    "Wie hoch ist der Mont Blanc?",
    "Schreibe eine kurze Einladung zu einem Grillfest.",
    "Quels sont les effets du café sur le sommeil ?",
    "Raconte-moi l'histoire de la tour Eiffel.",
    "¿Cuál es la diferencia entre clima y tiempo?",
    "Dame una receta sencilla de tortilla.",
    "Qual è il fiume più lungo d'Italia?",
    "Türkiye'nin başkenti neresidir?",
    "日本の四季について教えてください。",
    "请用一句话解释什么是人工智能。",
)
"""What anybody may ask; requests nearer to these than to any adapter are the base's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """Where an adapter's training prompts lie. Float32, (h) each."""

    mean: Tensor
    square: Tensor
    """The mean of squares."""
    residual: Tensor
    """The mean square from the prompt's own centre."""
    centres: Tensor  # (C, h)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """An adapter that may be routed to."""

    adapter_id: str
    """`helpdesk@v3`"""
    digest: str
    profile: Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingDecision:
    """Who is to answer."""

    adapter_id: str | None = None
    """The nearest adapter, whether or not it is near enough."""
    digest: str | None = None
    """Of the adapter that is to answer; None where the base is."""
    score: float = 0.0
    """The cosine of the request and the nearest adapter."""
    runner_up: str | None = None
    """The next nearest; None where that is the background, for which the base stands."""

    @property
    def is_confident(self) -> bool:
        """Whether an adapter is near enough, and nearer than the others."""
        return self.digest is not None


class Router:
    """All profiles, seen from their common middle."""

    def __init__(self, candidates: Sequence[Candidate], background: Profile | None = None) -> None:
        self.candidates = tuple(candidates)
        profiles = [candidate.profile for candidate in candidates] + ([] if background is None else [background])
        if not profiles:
            return
        self.middle = torch.stack([profile.mean for profile in profiles]).mean(0)  # (h)
        square = torch.stack([profile.square for profile in profiles]).mean(0)
        self.spread = (square - self.middle.square()).clamp_min(TINY**2).sqrt()  # (h)
        centres = [(profile.centres - self.middle) / self.spread for profile in profiles]
        sizes = [own.norm(dim=1) for own in centres]
        off = [(profile.residual / self.spread.square()).sum() for profile in profiles]
        usual = [size / (size.square() + own).sqrt().clamp_min(TINY) for size, own in zip(sizes, off, strict=True)]
        self.centres, self.usual = F.normalize(torch.cat(centres), dim=1), torch.cat(usual)  # (M, h), (M): the cosine of its own prompts
        self.owners = [at for at, own in enumerate(centres) for _ in own]  # the background comes after all candidates

    def has_any(self, allowed: Callable[[str], bool]) -> bool:
        """Whether there is an adapter to decide for, among those whose digest is allowed."""
        return any(allowed(candidate.digest) for candidate in self.candidates)

    def decide(self, state: Tensor, allowed: Callable[[str], bool] = lambda digest: True) -> RoutingDecision:
        """The mean hidden state (h) of a prompt -> the nearest adapter of those whose digest is allowed, or the base."""
        if not self.candidates:
            return RoutingDecision()
        cosines = self.centres @ F.normalize((state.float().cpu() - self.middle) / self.spread, dim=0)  # (M)
        nearest = self._nearest(cosines, allowed)
        own = next(((place, candidate) for place, candidate in nearest if candidate is not None), None)
        if own is None:
            return RoutingDecision()
        place, candidate = own
        assert candidate is not None
        others = [other for other in nearest if other[1] is not candidate]
        score, next_score = float(cosines[place]), float(cosines[others[0][0]]) if others else 0.0
        is_near = score >= MIN_SHARE * float(self.usual[place]) and score - next_score >= MIN_MARGIN
        return RoutingDecision(
            adapter_id=candidate.adapter_id,
            digest=candidate.digest if is_near else None,
            score=score,
            runner_up=others[0][1].adapter_id if others and others[0][1] else None,
        )

    def _nearest(self, cosines: Tensor, allowed: Callable[[str], bool]) -> list[tuple[int, Candidate | None]]:
        """The three nearest profiles that may be looked at, each by its nearest centre; None is the background."""
        found: dict[int, tuple[int, Candidate | None]] = {}
        for place in cosines.argsort(descending=True).tolist():
            owner = self.owners[place]
            candidate = self.candidates[owner] if owner < len(self.candidates) else None
            if owner not in found and (candidate is None or allowed(candidate.digest)):
                found[owner] = place, candidate
                if len(found) == 3:
                    break
        return list(found.values())


def make_profile(states: Tensor) -> Profile:
    """The mean hidden states (n, h) of some prompts -> their profile."""
    states = states.float().cpu()
    own = _centre_of_each(states / states.std(0, correction=0).clamp_min(TINY))
    groups = [states[own == at] for at in sorted(set(own.tolist()))]
    centres = torch.stack([group.mean(0) for group in groups])
    residual = torch.cat([group - group.mean(0) for group in groups]).square().mean(0)
    return Profile(mean=states.mean(0), square=states.square().mean(0), residual=residual, centres=centres)


def _centre_of_each(points: Tensor) -> Tensor:
    """points (n, h) -> which of a few groups each is in (n): k-means, begun with points far from each other."""
    centres = points[(points - points.mean(0)).square().sum(1).argmax()][None]
    while len(centres) < min(NUM_CENTRES, len(points)):
        centres = torch.cat([centres, points[torch.cdist(points, centres).amin(1).argmax()][None]])
    for _ in range(NUM_ROUNDS):
        own = torch.cdist(points, centres).argmin(1)
        centres = torch.stack([points[own == at].mean(0) if (own == at).any() else centre for at, centre in enumerate(centres)])
    return torch.cdist(points, centres).argmin(1)


def prompts_of(rows: Sequence[Rendered]) -> list[tuple[int, ...]]:
    """What an adapter was asked in training: the beginnings of some rows up to their answers; of plain text, the text."""
    step = max(1, len(rows) // NUM_PROMPTS)
    prompts, num_tokens = list[tuple[int, ...]](), 0
    for row in rows[::step][:NUM_PROMPTS]:
        prompt_len = row.supervised.index(True)
        prompts.append(row.ids[: prompt_len if prompt_len > 1 else len(row.ids)][:ROUTED_LEN])
        num_tokens += len(prompts[-1])
        if num_tokens > NUM_PROMPT_TOKENS:
            break
    return prompts


def background_prompts(renderer: Renderer) -> list[tuple[int, ...]]:
    """The background as this base reads it."""
    return [renderer.render_prompt([Message(role="user", content=text)]) for text in BACKGROUND]


@torch.inference_mode()
def states_of(base: Base, decoder: Decoder, prompts: Sequence[tuple[int, ...]]) -> Tensor:
    """The mean hidden states (n, h) of prompts, the first token's left out: by the base alone, without a cache."""
    nothing = BatchedLoRA(None, {}, [])
    means = []
    for together in _in_runs(prompts):
        lengths = [len(ids) for ids in together]
        ids = torch.tensor([i for prompt in together for i in prompt], device=base.device)
        positions = torch.cat([torch.arange(length, device=base.device) for length in lengths])
        hidden = decoder.run(ids, positions, PackedSegments(whole(lengths), base.device), nothing).float()  # (T, h)
        means += [own[1:].sum(0) / max(1, len(own) - 1) for own in torch.split(hidden, lengths)]
    return torch.stack(means)


def _in_runs(prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Prompts in groups of so many tokens together."""
    together, num_tokens = list[tuple[int, ...]](), 0
    for prompt in prompts:
        if together and num_tokens + len(prompt) > TOKENS_PER_RUN:
            yield together
            together, num_tokens = [], 0
        together.append(prompt)
        num_tokens += len(prompt)
    if together:
        yield together


def profile_to_bytes(profile: Profile, base_digest: str) -> bytes:
    """A profile as its file holds it; it is of use with this base alone."""
    tensors = {name: getattr(profile, name).contiguous() for name in Profile.__slots__}
    return save(tensors, metadata={"version": PROFILE_VERSION, "base_digest": base_digest})


def read_profile(folder: Path, base: Base) -> Profile | None:
    """The profile beside an adapter's files; None if there is none, or it is another base's or another version's.

    Raises:
        IntegrityError: if there is one that cannot be read.
    """
    path, width = folder / ROUTING_FILE, base.head.weight.shape[1]
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"version": PROFILE_VERSION, "base_digest": base.digest}:
                return None
            profile = Profile(**{name: file.get_tensor(name) for name in Profile.__slots__})
    except (OSError, SafetensorError) as exc:
        raise IntegrityError(f"profile {str(path)!r} cannot be read ({type(exc).__name__}): it is made again") from exc
    if profile.centres.ndim != 2 or any(getattr(profile, name).shape[-1:] != (width,) for name in Profile.__slots__):
        raise IntegrityError(f"profile {str(path)!r} is not of this base's width {width}: it is made again")
    return profile
