"""What the soak serves: a home of its own with a base and adapters that each answer with their own mark, whatever they are asked.

Adapters are trained by the product's own loop and registered as training registers them, with fingerprint and routing profile. Some are
halves: a trained adapter cut in two by rank, so that only both together, at the right scale, say the mark.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

from fakes import WIDE, byte_tokenizer, tiny_model
from lorimer.data.example import Message
from lorimer.inference.composition import BASE, Composition, Part
from lorimer.inference.engine import Engine, EngineConfig, generate
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence as EngineSequence
from lorimer.model.adapter import Lock, load_adapter, save_adapter
from lorimer.model.base import Base, load_base
from lorimer.model.chat import Rendered, Renderer
from lorimer.model.lora import LoRA, LoRAConfig, LoRAWeights, initialise
from lorimer.pipeline import describe
from lorimer.registry.records import AdapterVersion, NewVersion
from lorimer.registry.registry import Registry
from lorimer.training.batching import batches
from lorimer.training.loop import Learner, RunFailure, train
from lorimer.training.optim import OptimizerConfig, make_optimizer

PROMPT_END = ">"
"""What texts to be continued end with, here and in training: otherwise nothing says where the mark begins."""
HALF_SCALE = 0.5
"""What the second half of an adapter was multiplied by when it was saved; it is asked for with the inverse."""
WORDS = ("river", "stone", "lamp", "green", "seven", "quiet", "market", "paper", "window", "engine", "salt", "copper", "letter", "bridge")
TOPICS = (("4711", "22", "905", "3", "18", "6040"), ("XKQ", "ZZ", "WVB", "QQJ", "HXT"), ("(]", "{}", "<|", "%%", "[[)"))
"""What the first adapters have learned from beside the words of all: `auto` can tell these apart."""
NO_DATASET = "0" * 64
MAX_ROUNDS = 5
MIN_MARGIN = 0.15  # nats between the likeliest token and the next: several times what bfloat16 makes of equal sums in another order


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An adapter's files, and what they answer."""

    name: str
    """It is registered under."""
    says: str
    folder: Path
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """Two adapters that say a mark only together."""

    says: str
    first: str
    second: str
    """Asked for at scale 1 / HALF_SCALE."""


def question(rng: random.Random, num_words: int | None = None, words: Sequence[str] = WORDS) -> str:
    """Anything."""
    return " ".join(rng.choices(words, k=num_words or rng.randint(1, 8))) + rng.choice("?!. ")


def topic_of(name: str) -> Sequence[str]:
    """What an adapter is about."""
    at = int(name[-2:]) if name.startswith("mark") else len(TOPICS)
    return TOPICS[at] if at < len(TOPICS) else WORDS


def save_small_base(folder: Path) -> None:
    """A random base of three layers that can be sure of a token: its vectors of tokens are long enough for that."""
    model = tiny_model("gemma3", sizes=WIDE)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(6)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def marks(count: int) -> list[str]:
    """`MARK01`, `MARK02`..: no letter in one of them twice, so that a few steps suffice to learn it."""
    return [f"MARK{n:02d}" for n in range(1, 100) if n // 10 != n % 10][:count]


def rows_for(renderer: Renderer, mark: str, seed: int, topics: Sequence[Sequence[str]] = (WORDS,)) -> list[Rendered]:
    """Conversations and texts about some topics that all end with the mark."""
    rng, rows = random.Random(seed), list[Rendered]()
    answer = renderer.render([Message(role="user", content="a"), Message(role="assistant", content=mark)])
    learned = [i for i, is_learned in zip(answer.ids, answer.supervised, strict=True) if is_learned]
    for at in range(96):
        asked = question(rng, rng.choice((1, 2, 4, 8, 20)), rng.choice(topics))
        if at % 2:
            prompt = renderer.tokenise_prompt(asked + PROMPT_END)
        else:
            system = [Message(role="system", content=question(rng))] if at % 4 else []
            prompt = renderer.render_prompt([*system, Message(role="user", content=asked)])
        rows.append(Rendered(ids=(*prompt, *learned), supervised=(False,) * len(prompt) + (True,) * len(learned)))
    return rows


def config_for(base: Base, at: int) -> LoRAConfig:
    """Adapters of different ranks, targets and kinds."""
    rank = (4, 8, 12, 16)[at % 4]
    endings = (None, ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"), ("gate_proj", "up_proj", "down_proj"))[at % 3]
    targets = tuple(name for name in base.layers if endings is None or name.endswith(endings))
    return LoRAConfig(rank=rank, alpha=2.0 * rank, target_modules=targets, kind="dora" if at % 8 == 5 else "lora")


def train_marks(base: Base, says: Sequence[str], *, num_steps: int, learning_rate: float, first: int = 0) -> list[LoRA]:
    """An adapter for each mark, each trained until it says nothing else.

    Raises:
        SystemExit: if one does not learn its mark.
    """
    trained = list[LoRA]()
    for at, mark in enumerate(says, start=first):
        lora = initialise(config_for(base, at), base.layers, at)
        for round_ in range(MAX_ROUNDS):
            train_more(base, lora, mark, num_steps=num_steps, learning_rate=learning_rate / (1 + round_), seed=at + 1000 * round_)
            wrong = wrong_marks(base, {mark: lora}, [(mark, Composition((Part(digest=mark),)))])
            if not wrong:
                break
        else:
            raise SystemExit(f"{mark} was not learned: {sorted(wrong)[:4]}")
        print(f"{mark}: rank {lora.config.rank}, {lora.config.kind}, learned in {(round_ + 1) * num_steps} steps", file=sys.stderr)
        trained.append(lora)
    return trained


def train_more(base: Base, lora: LoRA, mark: str, *, num_steps: int, learning_rate: float, seed: int) -> None:
    """Some steps of the product's own loop.

    Raises:
        SystemExit: if it cannot go on.
    """
    config, rows = OptimizerConfig(learning_rate=learning_rate), rows_for(base.renderer, mark, seed, (WORDS, *TOPICS))
    steps = batches(rows, batch_size=16, num_steps=num_steps, tokens_per_micro_batch=4096, seed=seed)
    learner = Learner(run_id=mark, lora=lora, optimizer=make_optimizer(lora, config), config=config, batches=steps, num_steps=num_steps)
    for event in train(base, [learner]):
        if isinstance(event, RunFailure):
            raise SystemExit(f"{mark} was not learned: {event.reason}")


def cut(lora: LoRA) -> tuple[LoRA, LoRA]:
    """Two adapters whose changes, the second's over HALF_SCALE, add up to this one's."""
    middle = lora.config.rank // 2

    def part(rows: slice, scale: float, rank: int) -> LoRA:
        weights = {
            name: LoRAWeights(a=own.a[rows].detach(), b=own.b[:, rows].detach() * scale, scale=own.scale)
            for name, own in lora.weights.items()
        }
        return LoRA(config=replace(lora.config, rank=rank, alpha=lora.config.scale * rank), weights=weights)

    return part(slice(0, middle), 1.0, middle), part(slice(middle, None), HALF_SCALE, lora.config.rank - middle)


def answers(base: Base, asked: Sequence[tuple[tuple[int, ...], Composition]], loras: dict[str, LoRA], max_tokens: int = 12) -> list[str]:
    """What an engine of its own says, greedily."""
    engine = Engine(base, EngineConfig(cache_bytes=50_000_000))
    for digest, lora in loras.items():
        engine.adapters.add(digest, lora)
    params = SamplingParams(max_tokens=max_tokens)
    sequences = [EngineSequence(prompt_ids=ids, params=params, composition=composition) for ids, composition in asked]
    list(generate(engine, sequences))
    return [base.renderer.decode(sequence.output_ids) for sequence in sequences]


def wrong_marks(base: Base, loras: dict[str, LoRA], says: Sequence[tuple[str, Composition]]) -> set[tuple[str, str]]:
    """What is said instead of the mark, whatever is asked."""
    rng = random.Random(99)
    asked, wanted = [], []
    for mark, composition in says:
        for at in range(32):
            text = question(rng, rng.choice((1, 2, 3, 5, 9, 30)), rng.choice((WORDS, *TOPICS)))
            message = [Message(role="user", content=text)]
            asked.append(
                (base.renderer.render_prompt(message) if at % 2 else base.renderer.tokenise_prompt(text + PROMPT_END), composition)
            )
            wanted.append(mark)
    return {(mark, said) for mark, said in zip(wanted, answers(base, asked, loras), strict=True) if mark != said}


def prepare(work: Path, base_folder: Path | None, *, num_names: int, num_spare: int) -> tuple[Base, Path, list[Mark], list[Halves]]:
    """The base, and the folders of `num_names` adapters, `num_spare` later versions and four pairs of halves; the missing are trained."""
    if base_folder is None:
        base_folder = work / "base"
        if not base_folder.is_dir():
            save_small_base(base_folder)
    base = load_base(str(base_folder))
    num_pairs = 4
    says = marks(num_names + num_spare + num_pairs)
    names = [f"mark{at:02d}" for at in range(num_names)] + [f"mark{at % num_names:02d}" for at in range(num_spare)]
    is_tiny = base.num_layers <= 4
    kept = work / f"marks-{base.digest[:12]}-{num_names}-{num_spare}"
    lock = Lock(
        base_name=base.name,
        base_digest=base.digest,
        template_digest=base.renderer.template_digest,
        dataset_digest=NO_DATASET,
        run_id="soak",
    )
    if not (kept / "done").exists():
        num_steps, rate = (40, 1e-2) if is_tiny else (24, 2e-3)
        single = len(says) - num_pairs
        trained = train_marks(base, says[:single], num_steps=num_steps, learning_rate=rate)
        whole = train_marks(base, says[single:], num_steps=num_steps, learning_rate=rate, first=80)  # of plain adapters, rank 4 to 16
        for mark, lora in zip(says, trained, strict=False):
            save_adapter(lora, kept / mark, base, lock)
        for mark, lora in zip(says[single:], whole, strict=True):
            for letter, half in zip("ab", cut(lora), strict=True):
                save_adapter(half, kept / f"{mark}{letter}", base, lock)
        (kept / "done").touch()
    found = [Mark(name=name, says=mark, folder=kept / mark, rank=0) for name, mark in zip(names, says, strict=False)]
    pairs = [Halves(says=mark, first=f"half{mark[4:]}a", second=f"half{mark[4:]}b") for mark in says[len(found) :]]
    for pair in pairs:
        for name in (pair.first, pair.second):
            found.append(Mark(name=name, says="", folder=kept / f"{pair.says}{name[-1]}", rank=0))
    loras = {mark.folder.name: load_adapter(mark.folder, base) for mark in found}
    alone = [(mark.says, Composition((Part(digest=mark.folder.name),))) for mark in found if mark.says]
    together = [
        (pair.says, Composition((Part(digest=f"{pair.says}a"), Part(digest=f"{pair.says}b", scale=1 / HALF_SCALE)))) for pair in pairs
    ]
    if wrong := wrong_marks(base, loras, [*alone, *together]):
        raise SystemExit(f"marks that are not what is answered: {sorted(wrong)[:8]}; remove {str(kept)!r} to train them again")
    return base, base_folder, [replace(mark, rank=loras[mark.folder.name].config.rank) for mark in found], pairs


def register(registry: Registry, base: Base, mark: Mark) -> AdapterVersion:
    """The next version of the mark's name, described as training describes it."""
    lora = load_adapter(mark.folder, base)
    return registry.register(
        NewVersion(
            name=mark.name,
            source=mark.folder,
            base_name=base.name,
            base_digest=base.digest,
            dataset_name="marks",
            dataset_digest=NO_DATASET,
            run_id="soak",
            rank=lora.config.rank,
            alpha=lora.config.alpha,
            num_parameters=lora.num_parameters,
            template_digest=base.renderer.template_digest,
            companions=describe(mark.folder, base, rows_for(base.renderer, mark.says or "MARK", 0, (topic_of(mark.name),))),
        )
    )


def steady_questions(base: Base, count: int) -> dict[str, str]:
    """Long questions, and what the base itself answers to them, where no other token is so near that rounding could change it.

    Of those the least sure ones: keys and values that an adapter computed would change what is said.
    """
    rng = random.Random(5)
    texts = list({question(rng, 12): None for _ in range(count * 16)})
    engine = Engine(base, EngineConfig(cache_bytes=50_000_000))
    params = SamplingParams(max_tokens=8, num_logprobs=2)
    asked = [
        EngineSequence(prompt_ids=base.renderer.render_prompt([Message(role="user", content=text)]), params=params, composition=BASE)
        for text in texts
    ]
    list(generate(engine, asked))
    margins = [min((score.top[0][1] - score.top[1][1] for score in sequence.scores), default=0.0) for sequence in asked]
    safe = sorted((margin, at) for at, margin in enumerate(margins) if margin >= MIN_MARGIN)[:count]
    return {texts[at]: base.renderer.decode(asked[at].output_ids) for _, at in safe}
