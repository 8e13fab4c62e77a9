"""A server for one version alone, merged into its base: nothing is added to any step, and there is nothing else to ask for.

The version is read, checked and proved as any other before it is merged; what merging changes is measured on the probes of fingerprints.
"""

from collections.abc import Sequence

from lorimer.errors import LorimerError, QuarantineError, UsageError
from lorimer.inference.adapter_pool import AdapterPool
from lorimer.inference.decoder import PlainDecoder
from lorimer.inference.dedicated import Divergence, as_one, merge
from lorimer.inference.fingerprint import Prober, norms_of, probe_prompts, read_fingerprint
from lorimer.model.adapter import load_adapter
from lorimer.model.base import Base
from lorimer.model.lora import LoRA
from lorimer.registry.compositions import parts_of
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry, folder_of
from lorimer.serving.generation import NamedAdapter
from lorimer.serving.refusals import ApiError, shown
from lorimer.serving.replies import ModelCard
from lorimer.serving.resolve import REFERENCE_PATTERN, Models, Route, Target


def merge_version(registry: Registry, version: AdapterVersion, base: Base) -> Divergence:
    """Fold a registered version into its base, which is another one after it.

    Raises:
        UsageError: if the version was made for another base.
        IntegrityError: if its files are not those that were registered.
        QuarantineError: if it does not answer as it did then.
        AdapterError: if it cannot be merged.
    """
    if version.base_digest != base.digest:
        raise UsageError(
            f"{version.id} was made for base {version.base_name!r} ({version.base_digest[:12]}), {base.name!r} is {base.digest[:12]}: "
            "leave out `--base`, or give the one it was made for"
        )
    registry.verify_files(version)
    lora = as_one([(_proved(base, part.digest), part.scale) for part in parts_of(version)])
    return merge(base, lora, probe_prompts(base.renderer))


def _proved(base: Base, digest: str) -> LoRA:
    """An adapter as its files have it, once its fingerprint was replayed, where one was recorded."""
    decoder, folder = PlainDecoder(base), folder_of(digest)
    lora, recorded = load_adapter(folder, base), read_fingerprint(folder)
    if recorded is not None:
        ready = AdapterPool(base, dense_weight=decoder.dense_weight).prepare(lora)
        proof = Prober(base, decoder).prove(digest, ready, norms_of(lora, decoder.dense_weight), recorded)
        if proof.reason is not None:
            raise QuarantineError(
                f"adapter {digest[:12]!r} is not merged: {proof.reason}; restore what was registered, or register it again"
            )
    return lora


class DedicatedModels(Models):
    """What may be asked for where a version is merged into the base: that version, by its names."""

    def __init__(self, registry: Registry, version: AdapterVersion, *, max_len: int) -> None:
        super().__init__(registry, base_name=version.base_name, base_digest=version.base_digest, max_len=max_len, may_use_base=False)
        self.version = version

    def resolve(
        self, model: str, *, adapters: Sequence[NamedAdapter] = (), prompt_ids: tuple[int, ...] = (), route: Route | None = None
    ) -> Target:
        """See `Models.resolve`; the bare name is the merged version's, whatever was registered since.

        Raises:
            ApiError: 404 for everything else.
        """
        if adapters:
            raise ApiError(400, f"`adapters` cannot be added here: {self._why}", param="adapters", code="dedicated")
        self._check(model)
        return Target(id=self.version.id, merged_digest=self.version.digest)

    def card(self, model: str) -> ModelCard:
        """See `Models.card`."""
        self._check(model)
        return self._adapter_card(model, self.version)

    def cards(self) -> list[ModelCard]:
        """See `Models.cards`."""
        if not self._is_allowed:
            return []
        aliases = [alias.id for alias in self.registry.aliases(self.version.name) if alias.version == self.version.version]
        return [self._adapter_card(name, self.version) for name in sorted({self.version.name, self.version.id, *aliases})]

    @property
    def _is_allowed(self) -> bool:
        """Whether the caller, whose registry this is, may use the version; nobody may once somebody's data is erased from it."""
        history = self.registry.history(self.version.name)
        return any(version.version == self.version.version and version.erasure is None for version in history)

    @property
    def _why(self) -> str:
        return (
            f"this server is dedicated to {self.version.id!r}, which is merged into its base"
            if self._is_allowed
            else "the server is dedicated"
        )

    def _check(self, model: str) -> None:
        if not (self._is_allowed and self._is_named(model)):
            message = f"the model {shown(model)!r} is not served here: {self._why}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _is_named(self, model: str) -> bool:
        if model in (self.version.name, self.version.id):
            return True
        if not REFERENCE_PATTERN.fullmatch(model):
            return False
        try:
            return self.registry.resolve(model).id == self.version.id
        except LorimerError:
            return False
