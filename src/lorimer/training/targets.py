"""Which linear layers of a base an adapter changes, and at what rank: a recipe's words resolved to full names."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from lorimer.errors import ConfigError
from lorimer.model.lora import LoRALinear


def choose_layers(words: str | Sequence[int] | None, num_layers: int) -> frozenset[int] | None:
    """Numbers of the decoder layers that `last 6`, `first 4` or a list of numbers mean; None means all, and what is outside them.

    Raises:
        ConfigError: if the base has no such layers.
    """
    if words is None:
        return None
    if isinstance(words, str):
        match = re.fullmatch(r"(first|last) (\d+)", words.strip())
        if match is None or not 1 <= int(match[2]) <= num_layers:
            raise ConfigError(
                f"`layers` is {words!r}: write `first N` or `last N` with N from 1 to {num_layers}, or a list of numbers from 0"
            )
        count = int(match[2])
        return frozenset(range(count) if match[1] == "first" else range(num_layers - count, num_layers))
    beyond = [number for number in words if number >= num_layers]
    if beyond or not words:
        raise ConfigError(f"`layers` names {beyond or 'none'}: the base has {num_layers}, numbered from 0 to {num_layers - 1}")
    return frozenset(words)


def targets_of(endings: Sequence[str] | None, chosen: Collection[int] | None, layers: Mapping[str, LoRALinear]) -> tuple[str, ...]:
    """Full names of the layers to adapt: all linear ones but the head, or those whose names end so, in the decoder layers chosen.

    Raises:
        ConfigError: if no layer is named so.
    """
    names = set(layers) if endings is None else _ending_so(endings, layers, "targets")
    targets = tuple(name for name in layers if name in names and (chosen is None or layer_number(name) in chosen))
    if not targets:
        raise ConfigError(
            f"`targets` and `layers` together leave no layer to adapt: {', '.join(endings or ())} is not in layers {sorted(chosen or ())}"
        )
    return targets


def ranks_by_name(pattern: Mapping[str, int] | None, targets: Sequence[str]) -> dict[str, int]:
    """The layers whose rank is another; of two endings that fit, the longer counts.

    Raises:
        ConfigError: if an ending fits no adapted layer.
    """
    pattern = pattern or {}
    _ending_so(list(pattern), targets, "rank_pattern")
    by_length = sorted(pattern, key=len)
    return {name: pattern[ending] for ending in by_length for name in targets if _ends_so(name, ending)}


def refuse_impossible_ranks(ranks: Mapping[str, int], layers: Mapping[str, LoRALinear]) -> None:
    """A layer's change cannot have a rank above the layer's own.

    Raises:
        ConfigError: naming the layer that allows least, and the highest rank that all allow.
    """
    widths = {name: min(layers[name].in_features, layers[name].out_features) for name in ranks}
    beyond = [name for name, rank in ranks.items() if rank > widths[name]]
    if beyond:
        worst = min(beyond, key=lambda name: widths[name])
        raise ConfigError(
            f"rank {ranks[worst]} is impossible for {worst!r} ({layers[worst].in_features} to {layers[worst].out_features}): "
            f"{len(beyond)} layers allow less; take at most {widths[worst]}, or give these layers their own with `rank_pattern`"
        )


def layer_number(name: str) -> int | None:
    """The decoder layer a linear layer stands in."""
    match = re.search(r"\.layers\.(\d+)\.", f".{name}")
    return int(match[1]) if match else None


def _ending_so(endings: Sequence[str], names: Iterable[str], key: str) -> set[str]:
    found = {ending: [name for name in names if _ends_so(name, ending)] for ending in endings}
    unknown = [ending for ending, own in found.items() if not own]
    if unknown:
        there = sorted({name.rpartition(".")[2] for name in names})
        raise ConfigError(f"`{key}`: the base has no linear layer named {', '.join(map(repr, unknown))}; it has {', '.join(there)}")
    return {name for own in found.values() for name in own}


def _ends_so(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
