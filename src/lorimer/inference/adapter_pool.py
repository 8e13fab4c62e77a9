"""The adapters in memory, by digest: read ones up to a byte budget, the least recently used leave first; those in use stay.

Adapters are immutable: a digest always means the same weights, so nothing is ever reloaded in place. Files stay in the registry.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lorimer.errors import AdapterError, CompositionError, EngineError
from lorimer.inference.composition import Composition
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base
from lorimer.model.lora import LoRA, LoRAWeights, row_norms

MAX_WEIGHT = 1e4
"""Of an adapter's numbers, with its scale. Trained ones are below ten; with these no product of normed inputs leaves bfloat16's range."""


class AdapterPool:
    """Who is resident, and who is in use."""

    def __init__(
        self,
        base: Base,
        *,
        dense_weight: Callable[[str], Tensor],
        max_bytes: int = 2_000_000_000,
        on_leave: Callable[[str], None] = lambda digest: None,
    ) -> None:
        self.base, self.dense_weight, self.max_bytes, self.on_leave = base, dense_weight, max_bytes, on_leave
        self.num_bytes = 0
        self._resident: OrderedDict[str, LoRA] = OrderedDict()
        self._num_users = Counter[str]()
        self._unwanted = set[str]()  # to leave when their last user has gone

    def __contains__(self, digest: str) -> bool:
        return digest in self._resident

    @property
    def digests(self) -> list[str]:
        """What is resident, least recently used first."""
        return list(self._resident)

    @property
    def num_holds(self) -> int:
        """How often sequences hold adapters at present."""
        return sum(list(self._num_users.values()))  # a list at once: other threads ask

    def read(self, folder: Path) -> LoRA:
        """An adapter's files as inference wants them; touches nothing of the pool, so another thread may do it.

        Raises:
            AdapterError: if they do not fit the base, or hold numbers that are not finite.
        """
        return self.prepare(load_adapter(folder, self.base))

    def prepare(self, lora: LoRA) -> LoRA:
        """An adapter in the base's precision, DoRA's magnitudes as what they multiply outputs by.

        Raises:
            AdapterError: if it holds numbers that are not finite, or so large that products would not be.
        """
        ready = lora.to(dtype=self.base.dtype, device=self.base.device)
        broken = [name for name, own in ready.weights.items() if not _is_finite(own)]
        if broken:
            raise AdapterError(f"{len(broken)} layers hold numbers that are not finite, {broken[0]!r} first: train the adapter again")
        if large := [name for name, own in ready.weights.items() if _largest(own) > MAX_WEIGHT]:
            found = f"{len(large)} layers hold numbers beyond {MAX_WEIGHT:.0f}, {large[0]!r} first"
            raise AdapterError(f"{found}: training makes none such; train the adapter again")
        return LoRA(config=ready.config, weights={name: self._normed(name, own) for name, own in ready.weights.items()})

    def add(self, digest: str, lora: LoRA) -> None:
        """Make an adapter in memory resident; see `insert` and `prepare`."""
        self.insert(digest, self.prepare(lora))

    def insert(self, digest: str, lora: LoRA) -> None:
        """Make a prepared adapter resident; others leave if the bytes run out, but none that is in use."""
        if digest in self._resident:
            return
        self._resident[digest] = lora
        self.num_bytes += bytes_of(lora)
        leaving = (other for other in list(self._resident) if other != digest and not self._num_users[other])
        while self.num_bytes > self.max_bytes and (other := next(leaving, None)) is not None:
            self._drop(other)

    def load(self, digest: str, folder: Path) -> None:
        """Make an adapter's files resident, unless they are."""
        if digest not in self._resident:
            self.insert(digest, self.read(folder))

    def get(self, digest: str) -> LoRA:
        """A resident adapter.

        Raises:
            EngineError: if it is not resident.
        """
        if digest not in self._resident:
            raise EngineError(f"adapter {digest[:12]!r} is not loaded: load it before asking for it")
        self._resident.move_to_end(digest)
        return self._resident[digest]

    def hold(self, composition: Composition) -> None:
        """Keep adapters resident while a sequence needs them.

        Raises:
            EngineError: if one is not resident.
            CompositionError: if one of several, or one that is scaled, is DoRA's: refused here, since in a step it would fail all.
        """
        for digest in composition.digests:
            lora = self.get(digest)
            if digest != composition.digest and any(own.magnitude is not None for own in lora.weights.values()):
                raise CompositionError("a DoRA adapter answers alone and whole: its magnitudes do not add to another's change")
        self._num_users.update(composition.digests)

    def release(self, composition: Composition) -> None:
        """A sequence that held them has ended."""
        self._num_users.subtract(composition.digests)
        for digest in composition.digests:
            if digest in self._unwanted and not self._num_users[digest]:
                self._drop(digest)

    def unload(self, digest: str) -> bool:
        """Free an adapter, after those who use it now have ended; returns whether it is free already."""
        if digest not in self._resident:
            return True
        if self._num_users[digest]:
            self._unwanted.add(digest)
            return False
        self._drop(digest)
        return True

    def _drop(self, digest: str) -> None:
        self.num_bytes -= bytes_of(self._resident.pop(digest))
        self._unwanted.discard(digest)
        self.on_leave(digest)

    def _normed(self, name: str, own: LoRAWeights) -> LoRAWeights:
        """DoRA's magnitude over the norm of the adapted weight (arXiv:2402.09353), so that decoding needs no norm."""
        if own.magnitude is None:
            return own
        adapted = self.dense_weight(name).float() + own.scale * (own.b.float() @ own.a.float())
        return LoRAWeights(a=own.a, b=own.b, scale=own.scale, magnitude=own.magnitude.float() / row_norms(adapted))


def _is_finite(own: LoRAWeights) -> bool:
    return math.isfinite(own.scale) and all(bool(torch.isfinite(tensor).all()) for tensor in own.trained)


def _largest(own: LoRAWeights) -> float:
    return max(float(own.a.abs().max()), float(own.b.abs().max()) * max(1.0, abs(own.scale)))


def bytes_of(lora: LoRA) -> int:
    """Memory an adapter takes."""
    return sum(_bytes(tensor) for tensor in lora.parameters())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
