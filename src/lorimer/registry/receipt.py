"""The receipt of an erasure: what was taken out, what took its place, how its absence was seen, what remains; signed (DSSE)."""

import json
from collections.abc import Mapping
from typing import Any

from lorimer import __version__
from lorimer.errors import IntegrityError
from lorimer.registry.erasures import Erasure
from lorimer.registry.signing import PublicKey, Signer, envelope, find_signature, open_envelope
from lorimer.storage import canonical_json

RECEIPT_TYPE = "application/vnd.lorimer.erasure-receipt+json"
RESIDUAL_RISKS = (
    "Training-exact covers gradients only: hyper-parameters, deduplication, the choice of suites and gate decisions also saw the rows.",
    "The base model is out of scope: what it knew before any training here is untouched.",
    "Files that datasets were curated from lie outside this platform: whoever keeps them removes the rows there, or they come in again.",
    "Copies that left the platform are listed: who has them is to be told (GDPR Art. 19).",
    "Backups made before hold the rows until they are destroyed; whatever is restored here is erased again at once.",
    "Deleted blocks of a disk, versions a bucket keeps and the logs of a database server are beyond this program's reach.",
    "A server that runs keeps fenced adapters in memory, unreachable, until it needs the room or is restarted.",
    "Rows that do not carry the person's key, and words of theirs that stand in rows of others, are not found by it.",
)


def make_receipt(erasure: Erasure, *, at: str, routes: list[dict[str, Any]], signer: Signer) -> dict[str, Any]:
    """The signed envelope over all that can be said of an erasure without saying whom it was about."""
    document = erasure.document
    scope = document["scope"]
    payload = {
        "erasure": erasure.id,
        "lorimer": __version__,
        "requested_at": erasure.requested_at,
        "due_at": erasure.due_at,
        "approved_at": erasure.approved_at,
        "certified_at": at,
        "num_subjects": len(erasure.keys),
        "num_records": scope["num_records"],
        "num_twins_not_promoted": scope["num_twins_left_out"],
        "datasets": [{"old_root": old, "new_root": new} for old, new in sorted(document.get("datasets", {}).items())],
        "adapters_erased": document.get("adapters", []),
        "adapters_retrained": [{"old": old, **new} for old, new in sorted(document.get("retrained", {}).items())],
        "routes": routes,
        "verification": document.get("taken", {}),
        "notify": scope["left_platform"],
        "residual_risks": list(RESIDUAL_RISKS),
    }
    return envelope(RECEIPT_TYPE, canonical_json(payload), signer)


def read_receipt(receipt: Any, trusted: Mapping[str, PublicKey]) -> dict[str, Any]:
    """What a receipt says, once a trusted key is seen to have signed it.

    Raises:
        IntegrityError: if none has.
    """
    payload, signatures = open_envelope(receipt, RECEIPT_TYPE)
    if find_signature(RECEIPT_TYPE, payload, signatures, trusted) is None:
        raise IntegrityError(
            "the receipt is not signed by a trusted key, or was changed: `lorimer trust list` shows whose signatures count"
        )
    value: dict[str, Any] = json.loads(payload)
    return value
