"""The file that describes a model as judge: which endpoint is asked, what, and what it may answer. It asks nothing itself."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lorimer.config import Strict, read_keys

Kind = Literal["score", "pair"]
Scale = Literal["1-5", "yes-no"]
FIELD = re.compile(r"\{(question|answer|reference|answer_a|answer_b)\}")
NEEDED: dict[str, frozenset[str]] = {
    "score": frozenset({"question", "answer"}),
    "pair": frozenset({"question", "answer_a", "answer_b"}),
}
ALLOWED: dict[str, tuple[str, ...]] = {"1-5": ("1", "2", "3", "4", "5"), "yes-no": ("yes", "no"), "pair": ("A", "B", "tie")}
VALUES = {"1": 0.0, "2": 0.25, "3": 0.5, "4": 0.75, "5": 1.0, "yes": 1.0, "no": 0.0, "A": 1.0, "tie": 0.5, "B": 0.0}
"""What a verdict is worth; of a pair, to the answer that stands first."""


class Pins(Strict):
    """What must not change between a judge's calibration and its verdicts."""

    model: str
    """What the endpoint says answers, as `judge@v3`."""
    fingerprint: str = ""
    """The endpoint's `system_fingerprint`."""
    root: str = ""
    """The digest on the model's card, where a server of ours answers."""
    prompt_sha256: str

    @property
    def is_weak(self) -> bool:
        """Whether a name is all that the endpoint gives: other weights under the same name would not be seen."""
        return not self.fingerprint and not self.root


class JudgeSpec(Strict):
    """A model as judge."""

    judge: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Its name."""
    endpoint: str
    """Root of an OpenAI-compatible API; the items go there and nowhere else."""
    model: str = Field(min_length=1)
    key_env: str | None = None
    """The environment variable that holds the API's key."""
    kind: Kind
    """`score`: one answer against a rubric; `pair`: which of two answers is better."""
    scale: Scale | None = None
    """Of `score`: 1-5 (5 is best) or yes-no."""
    prompt: str = Field(max_length=20_000)
    """With {question}, {answer} and {reference}; of a pair {answer_a} and {answer_b}. How to answer is added by `full_prompt`."""
    max_tokens: int = Field(512, ge=1, le=16_384)
    """The judge's longest reply; one that is cut off is no verdict."""
    min_kappa: float = Field(0.6, gt=0, le=1)
    """Agreement with people below which it decides nothing."""
    concurrency: int = Field(4, ge=1, le=64)
    """Questions in flight at a time."""
    timeout_seconds: float = Field(120.0, gt=0, le=3600)
    pins: Pins | None = None
    """What `lorimer judges calibrate` found, if the file is to hold the judge to it wherever it is used."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = set(FIELD.findall(self.prompt))
        other = NEEDED["pair" if self.kind == "score" else "score"] - {"question"}
        problems = [f"{{{name}}} is missing" for name in sorted(NEEDED[self.kind] - found)]
        problems += [f"{{{name}}} has no meaning for `kind: {self.kind}`" for name in sorted(found & other)]
        if self.kind == "score" and self.scale is None:
            problems.append("`scale` is missing: 1-5 or yes-no")
        if self.kind == "pair" and self.scale is not None:
            problems.append("`scale` has no meaning for `kind: pair`, whose verdicts are A, B and tie")
        if self.pins and self.pins.prompt_sha256 != self.prompt_sha256:
            problems.append(
                f"the prompt is not the one in `pins` (SHA-256 {self.prompt_sha256[:12]}..., pinned {self.pins.prompt_sha256[:12]}...): "
                "put it back, or take `pins` out and calibrate the judge again"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def allowed(self) -> tuple[str, ...]:
        """The verdicts there are."""
        return ALLOWED[self.scale or "pair"]

    @property
    def full_prompt(self) -> str:
        """The prompt and how to answer it; the same words for all judges, so that one way of reading serves all."""
        how = f"End with one line that says `Verdict: ` and then one of: {', '.join(self.allowed)}. Say it only once."
        return f"{self.prompt.rstrip()}\n\n{how}"

    @property
    def prompt_sha256(self) -> str:
        """SHA-256 of `full_prompt`."""
        return hashlib.sha256(self.full_prompt.encode()).hexdigest()

    def render(self, values: Mapping[str, str]) -> str:
        """The prompt with an item in it; braces and placeholders that the item itself holds stay as they are."""
        return FIELD.sub(lambda found: values.get(found[1], ""), self.full_prompt)

    def identity(self, pins: Pins) -> dict[str, Any]:
        """All that decides what the judge says; its digest names calibration and kept verdicts."""
        own = {"judge": self.judge, "endpoint": self.endpoint.rstrip("/"), "kind": self.kind, "scale": self.scale}
        return own | {"max_tokens": self.max_tokens} | pins.model_dump()


def read_judge(path: Path) -> JudgeSpec:
    """Read a judge's file.

    Raises:
        ConfigError: if it is missing, not YAML, or has unknown or wrong keys; all of them in one message.
    """
    return read_keys(path, JudgeSpec, "judge", "docs/judges.md has one to begin with")
