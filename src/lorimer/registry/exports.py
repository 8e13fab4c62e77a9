"""Adapters and their papers leave the platform: as a folder PEFT reads, or as a pack for whoever checks. Every export is recorded."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Engine, insert, select

from lorimer import __version__
from lorimer.database import begin_write
from lorimer.errors import UsageError
from lorimer.registry.audit import current_actor, now, record
from lorimer.registry.bom import make_bom
from lorimer.registry.facts import ONE_THIRD, Facts, gather_facts
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.registry.schema import exports
from lorimer.registry.seal import PAPERS
from lorimer.storage import digest_of, digest_of_file, new_folder, write_json, write_text

Target = Literal["peft", "pack"]
CARD, DIGESTS = PAPERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One export, as it is kept."""

    id: int
    adapter_digest: str
    adapter: str
    """What it was called: `helpdesk@v3`."""
    target: Target
    place: str
    """The folder it was written to."""
    content_digest: str
    """Of what was written, file by file."""
    left_platform: bool
    """Whether the folder is out of this platform's reach: erasure then has to tell whoever has it."""
    exported_at: str
    exported_by: str

    def to_json(self) -> dict[str, Any]:
        """The JSON value that `--json` prints."""
        return asdict(self)


def export(
    registry: Registry,
    version: AdapterVersion,
    target: Target,
    output: Path,
    *,
    left_platform: bool = True,
    base_flops: float | None = None,
    actor: str | None = None,
    reason: str = "",
) -> Export:
    """Write an adapter (`peft`) or its papers (`pack`) to a new folder, and record that.

    Raises:
        UsageError: if the folder is there already, or the version is a composition, which has no files.
        IntegrityError: if the version's files are not those that were registered.
        StorageError: if the disk is full or not writable.
    """
    if version.parts:
        named = " ".join(part.id for part in version.parts)
        raise UsageError(f"{version.id} is a composition, without files: merge it (`lorimer adapters merge {named}`), export that")
    if output.exists():
        raise UsageError(f"{str(output)!r} is there already: name a folder that is not")
    facts, at = gather_facts(registry, version, base_flops=base_flops), now()
    with new_folder(output) as folder:
        texts = papers(facts, at=at) if target == "pack" else {CARD: papers(facts, at=at)["model-card.md"]}
        for name, text in texts.items():
            write_text(folder / name, text)
        if target == "peft":
            for name in facts.files:
                shutil.copy(version.path / name, folder / name)
        else:
            _write_records(folder, facts, at)
        digests = {file.name: digest_of_file(file) for file in sorted(folder.iterdir())}
        write_text(folder / DIGESTS, "".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    return _keep(registry.engine, version, target, output, digest_of(digests), left_platform, at, actor, reason)


def papers(facts: Facts, *, at: str) -> dict[str, str]:
    """Model card, dataset card where the dataset is here, and the draft of the technical documentation, by file name."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    values = {"facts": facts, "at": at, "lorimer_version": __version__, "one_third": ONE_THIRD, "blank": _blank}
    found = {"model-card.md": "model_card.md.j2", "annex-iv.md": "annex_iv.md.j2"}
    if facts.dataset_card is not None:
        found["dataset-card.md"] = "dataset_card.md.j2"
        values["card"] = facts.dataset_card
    return {name: environment.get_template(template).render(values).strip() + "\n" for name, template in found.items()}


def list_exports(engine: Engine, digests: tuple[str, ...] | None = None) -> tuple[Export, ...]:
    """Every export, oldest first; or those of some adapters."""
    query = select(exports).order_by(exports.c.id)
    if digests is not None:
        query = query.where(exports.c.adapter_digest.in_(digests))
    with engine.connect() as connection:
        return tuple(Export(**row) for row in connection.execute(query).mappings())


def _write_records(folder: Path, facts: Facts, at: str) -> None:
    """What the papers are written from, for machines: nothing in it is content of the dataset."""
    version = facts.version
    write_json(folder / "ml-bom.json", make_bom(facts, at=at))
    write_json(folder / "version.json", {**version.to_json(), "path": None, "aliases": facts.aliases, "files": facts.files})
    write_json(folder / "audit.json", [asdict(entry) for entry in facts.history])
    if facts.gate is not None:
        write_json(folder / "gate.json", facts.gate.to_json())
    if facts.report is not None:
        write_json(folder / "evaluation.json", _without_items(facts.report))
    if facts.plan is not None:
        write_json(folder / "plan.json", facts.plan)
    if (lock := version.path / "adapter.lock.json").is_file():
        shutil.copy(lock, folder / lock.name)


def _without_items(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "items"}


def _blank(what: str) -> str:
    return f"**TO BE FILLED IN**: {what}."


def _keep(
    engine: Engine,
    version: AdapterVersion,
    target: Target,
    output: Path,
    content_digest: str,
    left_platform: bool,
    at: str,
    actor: str | None,
    reason: str,
) -> Export:
    actor = actor or current_actor()
    row = {
        "adapter_digest": version.digest,
        "adapter": version.id,
        "target": target,
        "place": str(output.absolute()),
        "content_digest": content_digest,
        "left_platform": left_platform,
        "exported_at": at,
        "exported_by": actor,
    }
    with begin_write(engine) as connection:
        number = connection.execute(insert(exports).values(row).returning(exports.c.id)).scalar_one()
        details = {"digest": version.digest, "target": target, "content_digest": content_digest, "left_platform": left_platform}
        record(connection, actor=actor, action="export", subject=version.id, reason=reason, details=details)
    return Export(id=number, **row)  # type: ignore[arg-type]  # the row's keys are its fields
