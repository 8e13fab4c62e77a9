"""The adapters resident in memory, by digest; the least recently used leave when the bytes run out."""

from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from lorimer.errors import EngineError
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base
from lorimer.model.lora import LoRA


class AdapterPool:
    """Adapters are immutable: a digest always means the same weights, so nothing is ever reloaded in place."""

    def __init__(self, base: Base, *, max_bytes: int = 2_000_000_000) -> None:
        self.base, self.max_bytes = base, max_bytes
        self._resident: OrderedDict[str, LoRA] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._resident

    @property
    def digests(self) -> list[str]:
        """What is resident, least recently used first."""
        return list(self._resident)

    @property
    def num_bytes(self) -> int:
        """Memory the resident adapters take."""
        return sum(self._bytes(lora) for lora in self._resident.values())

    def load(self, digest: str, folder: Path) -> None:
        """Make an adapter's files resident, unless they are."""
        if digest not in self._resident:
            self.add(digest, load_adapter(folder, self.base))

    def add(self, digest: str, lora: LoRA, *, keep: Collection[str | None] = ()) -> None:
        """Make an adapter in memory resident, in the base's precision; those to `keep` stay, whatever the bytes."""
        self._resident[digest] = lora.to(dtype=self.base.dtype, device=self.base.device)
        leaving = [other for other in self._resident if other != digest and other not in keep]
        while self.num_bytes > self.max_bytes and leaving:
            del self._resident[leaving.pop(0)]

    def get(self, digest: str) -> LoRA:
        """A resident adapter.

        Raises:
            EngineError: if it is not resident.
        """
        if digest not in self._resident:
            raise EngineError(f"adapter {digest[:12]!r} is not loaded: load it before asking for it")
        self._resident.move_to_end(digest)
        return self._resident[digest]

    def _bytes(self, lora: LoRA) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in lora.parameters())
