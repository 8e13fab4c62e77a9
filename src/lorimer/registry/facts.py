"""What is known of an adapter version, gathered for those who ask on paper: cards, bills of materials, technical documentation.

What is not known stays None, and the documents say so. It writes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorimer.config import home
from lorimer.data.dataset import FOLDER_LEN, find_folder
from lorimer.errors import LorimerError
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.pages.page import report_folder
from lorimer.registry.audit import read_audit
from lorimer.registry.records import AdapterVersion, AuditEntry
from lorimer.registry.registry import Registry
from lorimer.storage import digest_of_file, read_jsonl

ONE_THIRD = 1 / 3
UNKNOWN_BASE_FLOPS = 1e23
"""What the guidelines put in the place of a base's training compute that nobody knows."""
BASE_TRAINING: Mapping[str, tuple[float, float, str]] = {
    "gemma3-270m": (268e6, 6e12, "268 million parameters and 6 trillion tokens, as Gemma 3's model card has them"),
}
"""Parameters, tokens, and where that is said, of bases that are shipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What an adapter's training took, against what its base's took: floating-point operations."""

    num_tokens: int
    """Trained on, every pass counted."""
    base_parameters: float
    adapter_parameters: int
    base_flops: float | None
    """Of the base's own training; None if nobody said."""
    base_flops_source: str

    @property
    def full_flops(self) -> float:
        """6 N D: two operations a weight forward, four backward, as if every weight of the base had been trained. An upper bound."""
        return 6 * self.base_parameters * self.num_tokens

    @property
    def flops(self) -> float:
        """(4 N + 6 n) D: the base's weights stay, so that their own gradients (2 N) are not formed; the adapter's n are trained."""
        return (4 * self.base_parameters + 6 * self.adapter_parameters) * self.num_tokens

    @property
    def share(self) -> float:
        """The upper bound's, of the base's training compute or what stands in its place."""
        return self.full_flops / (self.base_flops or UNKNOWN_BASE_FLOPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One version and all that belongs to it."""

    version: AdapterVersion
    aliases: tuple[str, ...]
    parents: tuple[AdapterVersion, ...]
    gate: GateResult | None
    report: Mapping[str, Any] | None
    run: Mapping[str, Any] | None
    plan: Mapping[str, Any] | None
    dataset_card: Mapping[str, Any] | None
    compute: Compute | None
    files: Mapping[str, str]
    """SHA-256 of each of its files, by name."""
    history: tuple[AuditEntry, ...]

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The layers it adapts, as its configuration names them."""
        config = _read(self.version.path / "adapter_config.json") or {}
        named = config.get("target_modules") or ()
        return (named,) if isinstance(named, str) else tuple(named)


def gather_facts(registry: Registry, version: AdapterVersion, *, base_flops: float | None = None) -> Facts:
    """All that this home and its database know of a version; `base_flops` is the base's training compute, where somebody knows it.

    Raises:
        IntegrityError: if the version's files are not those that were registered.
    """
    registry.verify_files(version)
    run = home() / "runs" / version.run_id if version.run_id else None
    plan = _read(run / "plan.json") if run else None
    names = sorted(path.name for path in version.path.iterdir() if path.is_file() and path.name[0] != ".")
    return Facts(
        version=version,
        aliases=tuple(alias.alias for alias in registry.aliases(version.name) if alias.version == version.version),
        parents=tuple(registry.find_digest(digest) for digest in version.parents),
        gate=registry.newest_gate(version),
        report=_read(report_folder(version.report_digest) / "report.json") if version.report_digest else None,
        run=_read(run / "run.json") if run else None,
        plan=plan,
        dataset_card=_read_card(version.dataset_digest),
        compute=_compute(version, run, plan, base_flops),
        files={name: digest_of_file(version.path / name) for name in names},
        history=read_audit(registry.engine, version.id),
    )


def _compute(version: AdapterVersion, run: Path | None, plan: Mapping[str, Any] | None, base_flops: float | None) -> Compute | None:
    if run is None or plan is None or not plan.get("trainable_share") or not (run / "metrics.jsonl").is_file():
        return None
    num_tokens = sum(int(row.get("num_tokens", 0)) for row in read_jsonl(run / "metrics.jsonl"))
    source = "as stated by whoever made this document"
    if base_flops is None and version.base_name in BASE_TRAINING:
        parameters, tokens, source = BASE_TRAINING[version.base_name]
        base_flops = 6 * parameters * tokens
    return Compute(
        num_tokens=num_tokens,
        base_parameters=plan["num_parameters"] / plan["trainable_share"],
        adapter_parameters=version.num_parameters,
        base_flops=base_flops,
        base_flops_source=source if base_flops else "",
    )


def _read_card(digest: str) -> Mapping[str, Any] | None:
    if len(digest) < FOLDER_LEN:
        return None
    try:
        return _read(find_folder(digest) / "card.json")
    except LorimerError:  # a store that is away: the documents say that the dataset is not here
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
