"""What requests that leave the choice to us are routed among: every adapter by its name, in the version that answers to it.

Profiles are made when an adapter is registered. One from before there were any gets its profile here, from its dataset, in the background.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from lorimer.data.dataset import read_dataset
from lorimer.errors import DataError, LorimerError
from lorimer.inference.routing import (
    NUM_PROMPTS,
    ROUTED_LEN,
    ROUTING_FILE,
    Candidate,
    Profile,
    Router,
    RoutingDecision,
    background_prompts,
    make_profile,
    profile_to_bytes,
    prompts_of,
    read_profile,
)
from lorimer.inference.sampling import SamplingParams
from lorimer.inference.sequence import Sequence as EngineSequence
from lorimer.model.chat import Rendered, Renderer
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import CHAMPION, Registry
from lorimer.registry.sealing import Seals
from lorimer.serving.worker import EngineWorker

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0
OWN_TENANT = "(routing)"  # no tenant's name; what is done in the background takes turns with everybody


class Candidates:
    """The router of one server, kept as new as its registry. Any thread may ask, but for an event loop's: an answer takes a prefill."""

    def __init__(self, worker: EngineWorker, registry: Registry) -> None:
        self.worker, self.registry, self.base = worker, registry, worker.engine.base
        self._profiles: dict[str, Profile | None] = {}  # by digest; None where there is none (yet)
        self._background: Profile | None = None
        self._router, self._names = Router(()), tuple[tuple[str, str], ...]()
        self._fresh_until = 0.0
        self._lock = threading.Lock()
        self._maker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="routing")

    def decide(self, ids: Sequence[int], allowed: Collection[str], *, tenant: str = "") -> RoutingDecision:
        """Which adapter learned from prompts like this one, of those with an allowed digest; none if none is near enough.

        It costs a prefill of the prompt's beginning by the base alone, in turn with everybody else's: through which adapter the prompt is
        to be computed is what it finds out. If the base answers, it begins from the blocks of the cache that this has filled.

        Raises:
            EngineError: if the engine has stopped or failed.
        """
        router, proofs = self._find_router(), self.worker.proofs

        def may(digest: str) -> bool:
            return digest in allowed and proofs.get(digest, True)  # what is in quarantine would not answer

        if not router.has_any(may):
            return RoutingDecision()
        (state,) = self._states([tuple(ids[:ROUTED_LEN])], tenant)
        return router.decide(state, may)

    def _find_router(self) -> Router:
        """The router over what is registered now, or was a moment ago."""
        with self._lock:
            if time.monotonic() >= self._fresh_until:
                versions = self._find_versions()
                for version in versions:
                    if version.digest not in self._profiles:
                        self._profiles[version.digest] = self._read(version)
                names = tuple((v.id, v.digest) for v in versions if self._profiles[v.digest] is not None)
                if names != self._names:
                    self._router, self._names = self._make_router(names), names
                self._fresh_until = time.monotonic() + REFRESH_SECONDS
            return self._router

    def _make_router(self, names: Sequence[tuple[str, str]]) -> Router:
        if self._background is None:
            self._background = make_profile(self._states(background_prompts(self.base.renderer), OWN_TENANT))
        profiles = ((name, digest, self._profiles[digest]) for name, digest in names)
        found = [Candidate(adapter_id=name, digest=digest, profile=own) for name, digest, own in profiles if own is not None]
        return Router(found, self._background)

    def _find_versions(self) -> list[AdapterVersion]:
        """Of every adapter made for this base, the version that its bare name stands for."""
        champions = {(alias.adapter_name, alias.version) for alias in self.registry.aliases() if alias.alias == CHAMPION}
        chosen: dict[str, AdapterVersion] = {}
        for version in self.registry.list_versions():  # of one name the newest first
            if version.erasure is not None:
                continue
            if version.name not in chosen or (version.name, version.version) in champions:
                chosen[version.name] = version
        own = (version for version in chosen.values() if version.base_digest == self.base.digest)
        return [version for version in own if not version.parts]  # a composition has learned from no prompts itself

    def _read(self, version: AdapterVersion) -> Profile | None:
        """An adapter's profile; one that is missing or damaged is made in the background."""
        try:
            profile = read_profile(version.path, self.base)
        except LorimerError as exc:
            logger.warning("%s", exc)
            profile = None
        if profile is None:
            self._maker.submit(self._make, version)
        return profile

    def _make(self, version: AdapterVersion) -> None:
        """Make the profile of an adapter that has none, from the prompts of its dataset."""
        try:
            rows = _render_some(version, self.base.renderer)
            profile = make_profile(self._states(prompts_of(rows), OWN_TENANT))
            Seals(self.registry.engine).add(version.digest, version.path, {ROUTING_FILE: profile_to_bytes(profile, self.base.digest)})
        except (LorimerError, OSError) as exc:
            logger.warning("nothing is routed to %s: where its training prompts lie is not known (%s)", version.id, exc)
            return
        except Exception:
            logger.exception("nothing is routed to %s", version.id)
            return
        with self._lock:
            self._profiles[version.digest], self._fresh_until = profile, 0.0
        logger.info("requests are routed to %s from now on", version.id)

    def _states(self, prompts: Sequence[tuple[int, ...]], tenant: str) -> Tensor:
        """The mean hidden states (n, h) of prompts, by the engine in its turn."""
        params, limit = SamplingParams(max_tokens=1, ignore_eos=True), self.worker.engine.max_len - 1
        sequences = [EngineSequence(prompt_ids=ids[:limit], params=params, tenant=tenant, wants_state=True) for ids in prompts]

        async def compute() -> None:
            async for _ in self.worker.submit(*sequences):
                pass

        asyncio.run(compute())
        return torch.stack([sequence.state for sequence in sequences if sequence.state is not None])


def _render_some(version: AdapterVersion, renderer: Renderer) -> list[Rendered]:
    """Some rows of an adapter's training split.

    Raises:
        DataError: if there is none that this base's template takes.
    """
    train = read_dataset(version.dataset_digest).train
    rows = list[Rendered]()
    for example in train[:: max(1, len(train) // NUM_PROMPTS)]:
        try:
            rows.append(renderer.render_example(example))
        except DataError:
            continue
    if not rows:
        raise DataError(f"dataset {version.dataset_name!r} has no rows that the base's template takes")
    return rows
