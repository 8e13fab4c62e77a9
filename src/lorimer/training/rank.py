"""The smallest adapter that is not worse: trained at a high rank, cut by one singular-value threshold over all layers, scored, chosen.

After PARA (arXiv:2604.27796): what a layer learned shows in the singular values of its change, so one threshold for all layers gives
each the rank it used. Layers that learned nothing above it are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorimer.errors import TrainingError
from lorimer.model.base import Base
from lorimer.model.chat import Rendered
from lorimer.model.lora import LoRA, LoRAWeights
from lorimer.training.pictures import RankPoint
from lorimer.training.scoring import RowScores, score_rows

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625)  # of all singular values kept
AUTO_RANK = 64  # what automatic choice begins with
MIN_ROWS = 30  # validation rows below which a score says nothing of a few percent
Z = 1.96  # 95%


@dataclass(frozen=True, slots=True, kw_only=True)
class RankChoice:
    """The sizes that were tried, and the one that is kept."""

    run_id: str
    points: tuple[RankPoint, ...]
    """From the largest adapter to the smallest."""
    chosen: int
    margin: float
    num_rows: int
    lora: LoRA

    def to_json(self) -> dict[str, Any]:
        """The JSON value kept beside the run."""
        return {
            "points": [asdict(point) for point in self.points],
            "chosen": self.chosen,
            "margin": self.margin,
            "num_rows": self.num_rows,
            "ranks": {name: weights.a.shape[0] for name, weights in self.lora.weights.items()},
        }


class _Parts(NamedTuple):
    """A layer's change as u diag(s) v^T."""

    u: Tensor  # (out, rank)
    s: Tensor  # (rank)
    v: Tensor  # (in, rank)


def require_rows(num_rows: int) -> None:
    """Refuse a choice that would rest on too little.

    Raises:
        TrainingError: with fewer validation rows than a choice needs.
    """
    if num_rows < MIN_ROWS:
        raise TrainingError(f"`rank: auto` chooses by the validation split, which has {num_rows} rows; it needs {MIN_ROWS}: give a rank")


def choose_rank(base: Base, lora: LoRA, held_out: Sequence[Rendered], margin: float, budget: int, run_id: str) -> RankChoice:
    """Cut `lora` at ever higher thresholds; keep the smallest that answers at most `margin` fewer validation rows exactly."""
    require_rows(len(held_out))
    parts = {name: decompose(weights) for name, weights in lora.weights.items()}
    tried = [truncate(lora, parts, threshold_for(parts, share)) for share in SHARES]
    scores = [score_rows(base, cut, held_out, budget) for cut in tried]
    good = [i for i, score in enumerate(scores) if scores[0].exact - score.exact <= margin]
    chosen = max(good)
    points = tuple(_point(cut, score) for cut, score in zip(tried, scores, strict=True))
    return RankChoice(run_id=run_id, points=points, chosen=chosen, margin=margin, num_rows=len(held_out), lora=tried[chosen])


@torch.no_grad()
def decompose(weights: LoRAWeights) -> _Parts:
    """The singular value decomposition of scale * b a, through the small square in the middle."""
    a, b = weights.factors
    q_b, r_b = torch.linalg.qr(b.float())
    q_a, r_a = torch.linalg.qr(a.float().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    return _Parts(u=q_b @ u, s=s * weights.scale, v=q_a @ v.T)


def threshold_for(parts: Mapping[str, _Parts], share: float) -> float:
    """The singular value above which this share of all layers' values lies."""
    values = torch.cat([part.s for part in parts.values()]).sort(descending=True).values
    return float(values[max(0, round(share * len(values)) - 1)])


@torch.no_grad()
def truncate(lora: LoRA, parts: Mapping[str, _Parts], threshold: float) -> LoRA:
    """The same adapter without the singular values below the threshold; each layer has a rank of its own."""
    ranks = {name: int((part.s >= threshold).sum()) for name, part in parts.items()}
    ranks = {name: rank for name, rank in ranks.items() if rank}
    rank = max(ranks.values())
    config = replace(
        lora.config,
        rank=rank,
        alpha=lora.config.scale * rank,
        ranks={name: own for name, own in ranks.items() if own != rank},
        kind="lora",
        rank_stabilised=False,
        target_modules=tuple(ranks),
    )
    weights = {}
    for name, kept in ranks.items():
        part = parts[name]
        root = (part.s[:kept] / config.scale).sqrt()
        a, b = (part.v[:, :kept] * root).T.contiguous(), (part.u[:, :kept] * root).contiguous()
        weights[name] = LoRAWeights(a=a, b=b, scale=config.scale)
    return LoRA(config=config, weights=weights)


def _point(lora: LoRA, score: RowScores) -> RankPoint:
    num_rows, p = len(score.is_exact), score.exact
    centre = (p + Z**2 / (2 * num_rows)) / (1 + Z**2 / num_rows)  # Wilson 1927
    half = Z / (1 + Z**2 / num_rows) * (p * (1 - p) / num_rows + Z**2 / (4 * num_rows**2)) ** 0.5
    return RankPoint(
        num_parameters=lora.num_parameters,
        adapter_bytes=4 * lora.num_parameters,
        exact=p,
        low=max(0.0, centre - half),
        high=min(1.0, centre + half),
        loss=score.loss,
    )
