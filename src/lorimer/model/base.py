"""The frozen base: any causal language model transformers loads, its linear layers replaced by ours, named by the digest of its files."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from lorimer.config import Quantisation
from lorimer.errors import EngineError, IntegrityError, NotFoundError
from lorimer.model.attention import IMPLEMENTATION, PackedSegments, Segments, whole
from lorimer.model.chat import Renderer
from lorimer.model.lora import AdapterRows, LoRALinear, Routing
from lorimer.model.machine import Machine, give_back_freed_memory, probe
from lorimer.model.mlp import replace_gated_mlps
from lorimer.model.norm import replace_norms
from lorimer.model.quantised import quantise
from lorimer.model.shipped import MANIFEST, SHIPPED, prepare
from lorimer.storage import digest_of, digest_of_file

NUM_PROBE_TOKENS = 4
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
SHARE_IN_FEW_BITS: dict[Quantisation, float] = {"int8": 0.55, "nf4": 0.35}  # of 16 bits, the head and embeddings as they are


class Head:
    """From hidden states to logits; what `forward` of the model's own class does after its decoder."""

    def __init__(self, model: PreTrainedModel) -> None:
        linear = model.get_output_embeddings()
        self.weight: Tensor = linear.weight  # (V, h)
        self.bias: Tensor | None = getattr(linear, "bias", None)
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (n, h) -> (n, V)."""
        return self.shape(F.linear(hidden, self.weight, self.bias))

    def shape(self, logits: Tensor) -> Tensor:
        """What is done to raw logits (n, V) -> (n, V)."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class Base:
    """A loaded base with its tokenizer and chat renderer. Frozen: what changes per batch is passed with the batch."""

    def __init__(self, *, name: str, digest: str, model: PreTrainedModel, tokenizer: Any) -> None:
        self.name, self.digest = name, digest
        self.files: Mapping[str, str] = {}
        """SHA-256 of the files its digest is taken of, by name; of one made in memory, none."""
        self.tokenizer_files: Mapping[str, str] = {}
        self.model = model.eval().requires_grad_(False)
        self.renderer = Renderer(tokenizer, end_ids=end_ids_of(model))
        expected = _probe(model)
        self._num_parameters = sum(int(p.numel()) for p in model.parameters())
        self.routing = Routing()
        self.layers = replace_linears(model, self.routing)
        replace_norms(model)
        replace_gated_mlps(model)
        self.decoder = model.get_decoder()
        self.head = Head(model)
        self.quantisation: Quantisation | None = None
        self.is_checkpointed = False
        """Whether training recomputes each layer in the backward pass instead of keeping what it needs: less memory, a third more time."""
        self._check_replacements(expected)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and products."""
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def max_len(self) -> int:
        """Longest sequence its positions allow."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def num_parameters(self) -> int:
        """Numbers in the base, a tied head counted once."""
        return self._num_parameters

    def quantise(self, kind: Quantisation) -> None:
        """Hold the linear layers in few bits from now on; the head, embeddings and norms stay as they are."""
        for layer in self.layers.values():
            layer.quantised = quantise(layer.weight.data, kind)
            layer.weight.data = layer.weight.data.new_empty(0)
        self.quantisation = kind

    @contextmanager
    def routed(self, rows: Sequence[AdapterRows]) -> Iterator[None]:
        """Within it the rows of a batch go through these adapters."""
        before, self.routing.rows = self.routing.rows, tuple(rows)
        try:
            yield
        finally:
            self.routing.rows = before

    def hidden_states(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Segments,
        rows: Sequence[AdapterRows] | None = None,
        *,
        from_layer: int = 0,
        states: Tensor | None = None,
    ) -> Tensor:
        """ids and positions (T) of one flattened stream -> last hidden states (T, h), adapters applied to their rows.

        With `states` (T, h), as `states_below` gives them, the layers below `from_layer` are not run.
        """
        stand_ins: dict[int, nn.Module] = {i: _Skipped(states) for i in range(from_layer)}
        if self.is_checkpointed and torch.is_grad_enabled():
            stand_ins |= {i: _Checkpointed(self.decoder_layers[i]) for i in range(from_layer, self.num_layers)}
        with self.routed(self.routing.rows if rows is None else rows), self._standing_in(stand_ins):
            return self._run(ids, positions, segments)

    def states_below(self, layer: int, ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        """ids and positions (T) -> what goes into this decoder layer (T, h), by the base alone."""
        skipped = [_Skipped(None) for _ in range(layer, self.num_layers)]
        with self.routed(()), self._standing_in(dict(enumerate(skipped, start=layer))):
            self._run(ids, positions, segments)
        assert skipped[0].seen is not None
        return skipped[0].seen[0]

    def _run(self, ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        output = self.decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, segments=segments)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder's layers, from the lowest."""
        lists = [module for module in self.decoder.children() if isinstance(module, nn.ModuleList) and len(module) == self.num_layers]
        return lists[0]

    @contextmanager
    def _standing_in(self, stand_ins: Mapping[int, nn.Module]) -> Iterator[None]:
        """Within it other modules stand in for some decoder layers."""
        layers = self.decoder_layers
        own = {i: layers[i] for i in stand_ins}
        for i, module in stand_ins.items():
            layers[i] = module
        try:
            yield
        finally:
            for i, module in own.items():
                layers[i] = module

    @torch.inference_mode()
    def _check_replacements(self, expected: Tensor) -> None:
        """Refuse a model that answers otherwise with our layers, norms and head than it did with its own."""
        ids = torch.arange(NUM_PROBE_TOKENS, device=self.device)
        found = self.head.logits(self.hidden_states(ids, ids, PackedSegments(whole([len(ids)]), self.device))).float()
        if not torch.allclose(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max())):
            raise EngineError(f"base {self.name!r} ({type(self.model).__name__}) computes its logits in a way Lorimer does not know")


class _Skipped(nn.Module):
    """Stands in for a layer that need not run: passes on what it gets, or states that are known."""

    def __init__(self, states: Tensor | None) -> None:
        super().__init__()
        self.states = None if states is None else states[None]  # (1, T, h)
        self.seen: Tensor | None = None

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        self.seen = hidden
        return hidden if self.states is None else self.states


class _Checkpointed(nn.Module):
    """Stands in for a layer whose forward pass runs again in the backward pass (Chen et al. 2016, arXiv:1604.06174)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, **options: Any) -> Tensor:
        result: Tensor = checkpoint(self.layer, hidden, use_reentrant=False, **options)
        return result


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> Tensor:
    """Logits (n, V) of a few tokens by the model's own layers."""
    ids = torch.arange(NUM_PROBE_TOKENS, device=model.device)
    output = model(input_ids=ids[None], position_ids=ids[None], use_cache=False, segments=PackedSegments(whole([len(ids)]), model.device))
    logits: Tensor = output.logits[0].float()
    return logits


def load_base(name: str, *, dtype: torch.dtype | None = None, quantisation: Quantisation | None = None) -> Base:
    """Load a base by shipped name, folder or hub id, in the precision that is fastest here unless `dtype` says otherwise.

    With `quantisation` its linear layers are then held in 8 or 4 bits: less memory in training, more time.

    Raises:
        NotFoundError: if there is none of that name.
        EngineError: if this machine's memory cannot hold it; said before anything is read.
        IntegrityError: if its files are not those that were prepared.
    """
    folder, machine = find_base(name), probe()
    _refuse_too_large(name, folder, machine, quantisation)
    files = digests_of_base(folder)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or machine.dtype, attn_implementation=IMPLEMENTATION, use_safetensors=True
    )
    base = Base(name=name, digest=digest_of(files), model=model.to(machine.device), tokenizer=tokenizer)
    base.files, base.tokenizer_files = files, digests_of_tokenizer(folder)
    if quantisation is not None:
        base.quantise(quantisation)
    give_back_freed_memory()
    return base


def _refuse_too_large(name: str, folder: Path, machine: Machine, quantisation: Quantisation | None) -> None:
    """By the size of its files, which hold 16 bits a weight as the machine will."""
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    held = num_bytes * (SHARE_IN_FEW_BITS[quantisation] if quantisation else 1)
    if held > machine.memory_bytes:
        fits = [kind for kind, share in SHARE_IN_FEW_BITS.items() if num_bytes * share < machine.memory_bytes]
        hint = f"hold it in fewer bits with `quantise: {fits[0]}`" if fits and not quantisation else "take a smaller base"
        raise EngineError(
            f"base {name!r} takes {held / 1e9:.1f} GB, this machine has {machine.memory_bytes / 1e9:.1f} GB: {hint}; "
            "`lorimer plan --base` says what each way of adapting it would need"
        )


def find_base(name: str) -> Path:
    """The folder of a base: shipped (prepared on first use), a path, or a hub id that is in the local Hugging Face cache.

    Raises:
        NotFoundError: naming what was looked for and what there is.
    """
    if name in SHIPPED:
        return prepare(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        missing = [
            part
            for part, found in (("config.json", (folder / "config.json").is_file()), ("*.safetensors", any(folder.glob("*.safetensors"))))
            if not found
        ]
        if missing:
            raise NotFoundError(f"base folder {name!r} has no {' and no '.join(missing)}: it must hold a model in Hugging Face format")
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _find_hub_base(name)
    near = get_close_matches(name, SHIPPED, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(sorted(SHIPPED))}; or give a folder in Hugging Face format"
    raise NotFoundError(f"base {name!r} is neither a shipped base nor a folder: {hint}")


def _find_hub_base(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "1") != "0"
    try:
        found = snapshot_download(name, local_files_only=offline, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"])
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as exc:
        raise NotFoundError(
            f"base {name!r} is neither a folder nor in the local Hugging Face cache: fetch it with `hf download {name}` "
            "or set HF_HUB_OFFLINE=0 to let Lorimer fetch it"
        ) from exc
    return Path(found)


def digest_of_base(folder: Path) -> str:
    """SHA-256 over the digests of a base's configuration and weights; checked against the manifest where there is one.

    Raises:
        IntegrityError: if a file is not the one that was prepared.
    """
    return digest_of(digests_of_base(folder))


def digests_of_base(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that a base's digest is taken of, by name.

    Raises:
        IntegrityError: as `digest_of_base`.
    """
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    found = {path.name: digest_of_file(path) for path in files}
    manifest = folder / MANIFEST
    if manifest.is_file():
        recorded = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        wrong = [name for name, digest in found.items() if recorded.get(name) != digest]
        if wrong:
            raise IntegrityError(
                f"base in {str(folder)!r}: {', '.join(wrong)} changed since it was prepared (SHA-256 differs): "
                "delete the folder and run again"
            )
    return found


def digests_of_tokenizer(folder: Path) -> dict[str, str]:
    """SHA-256 of each of a base's tokenizer files that it has, by name; its chat template has a digest of its own."""
    return {name: digest_of_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}


def replace_linears(model: PreTrainedModel, routing: Routing) -> dict[str, LoRALinear]:
    """Put a `LoRALinear` in the place of every linear layer but the head; returns them by full name."""
    head = model.get_output_embeddings()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    layers = {}
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        layers[name] = LoRALinear(linear, name, routing)
        setattr(model.get_submodule(parent), child, layers[name])
    return layers


def end_ids_of(model: PreTrainedModel) -> set[int]:
    """The ids the model's own files name as end of sequence."""
    return end_ids_in(model.generation_config, model.config)


def end_ids_in(*configs: object) -> set[int]:
    """The ids these name as end of sequence."""
    found: set[int] = set()
    for config in configs:
        value = getattr(config, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return found
