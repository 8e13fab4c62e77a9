"""A machine-learning bill of materials: CycloneDX 1.6 (ECMA-424), written directly, since its Python library has no model card yet."""

import uuid
from typing import Any

from lorimer import __version__
from lorimer.registry.facts import Facts

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:lorimer:bom")


def make_bom(facts: Facts, *, at: str) -> dict[str, Any]:
    """The adapter as the component that is described; its base, its dataset and, of a merge, its parents as what it is made of."""
    version = facts.version
    components = [_base(facts), *([_dataset(facts)] if version.dataset_digest else []), *(_parent(parent) for parent in facts.parents)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, f'{version.digest} {at}')}",
        "version": 1,
        "metadata": {
            "timestamp": at,
            "tools": {"components": [{"type": "application", "name": "lorimer", "version": __version__}]},
            "component": _adapter(facts),
        },
        "components": components,
        "dependencies": [
            {"ref": _ref(version.digest), "dependsOn": sorted(component["bom-ref"] for component in components)},
            *({"ref": component["bom-ref"]} for component in components),
        ],
    }


def _ref(digest: str) -> str:
    return f"sha256:{digest}"


def _adapter(facts: Facts) -> dict[str, Any]:
    version = facts.version
    return {
        "type": "machine-learning-model",
        "bom-ref": _ref(version.digest),
        "name": version.name,
        "version": f"v{version.version}",
        "description": f"Low-rank adapter of rank {version.rank} for {version.base_name}",
        "components": [
            {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]} for name, digest in facts.files.items()
        ],
        "modelCard": _model_card(facts),
        "properties": _properties(
            digest=version.digest,
            base_digest=version.base_digest,
            dataset_digest=version.dataset_digest,
            template_digest=version.template_digest,
            run=version.run_id,
            rank=str(version.rank),
            alpha=f"{version.alpha:g}",
            num_parameters=str(version.num_parameters),
            gate=version.gate_verdict or "none",
            gate_digest=version.gate_digest or "",
            registered_at=version.created_at,
        ),
    }


def _model_card(facts: Facts) -> dict[str, Any]:
    datasets = [{"ref": _ref(facts.version.dataset_digest)}] if facts.version.dataset_digest else []
    card: dict[str, Any] = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": f"LoRA of rank {facts.version.rank} on {', '.join(facts.target_modules)[:500] or 'its base'}",
            "datasets": datasets,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        }
    }
    if facts.report is not None:
        metric = str(facts.report["metric"])
        scores = {"adapter": facts.report["adapter_score"], "base": facts.report["base_score"]}
        metrics = [_metric(metric, f"{who}, {facts.report['split']} split", score) for who, score in scores.items()]
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def _metric(kind: str, which: str, score: Any) -> dict[str, Any]:
    share = score["num_correct"] / score["num_items"] if score["num_items"] else 0.0
    low, high = score["interval"]["low"], score["interval"]["high"]
    bounds = {"lowerBound": f"{low:.4f}", "upperBound": f"{high:.4f}"}
    return {"type": kind, "value": f"{share:.4f}", "slice": which, "confidenceInterval": bounds}


def _base(facts: Facts) -> dict[str, Any]:
    version = facts.version
    return {
        "type": "machine-learning-model",
        "bom-ref": _ref(version.base_digest),
        "name": version.base_name,
        "description": "The frozen base",
        "properties": _properties(digest=version.base_digest),
    }


def _dataset(facts: Facts) -> dict[str, Any]:
    version, card = facts.version, facts.dataset_card or {}
    sizes = {f"num_{name}": str(split.get("num_examples", "")) for name, split in card.get("splits", {}).items()}
    return {
        "type": "data",
        "bom-ref": _ref(version.dataset_digest),
        "name": version.dataset_name or "dataset",
        "data": [{"type": "dataset", "name": version.dataset_name or "dataset"}],
        "properties": _properties(digest=version.dataset_digest, **sizes),
    }


def _parent(parent: Any) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": _ref(parent.digest),
        "name": parent.name,
        "version": f"v{parent.version}",
        "description": "An adapter that was merged into this one",
    }


def _properties(**values: str) -> list[dict[str, str]]:
    return [{"name": f"lorimer:{name}", "value": value} for name, value in values.items() if value]
