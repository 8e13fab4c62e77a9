"""kill -9 in the middle of a run, then `lorimer runs resume`: the adapter has the bytes of a run that was never killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fakes import save_tiny_base
from lorimer.cli.main import run

PROGRAM = "import torch; torch.set_num_threads(1); from lorimer.cli.main import main; main()"


def test_kill_9_and_resume_end_with_the_same_bytes(tmp_path: Path, home: Path) -> None:
    save_tiny_base(tmp_path / "base", "gemma3")
    rows = [{"prompt": f"ticket number {i}", "completion": f"answer {i % 4}"} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = "name: demo\nmetric: exact\nlearning_rate: 0.01\nrank: 8\nsteps: 120\ncheckpoint_every: 4\nvalidate_every: 10\n"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {tmp_path / 'base'}\ndataset: rows.jsonl\n{keys}")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "train", str(recipe)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not list(home.glob("runs/*/checkpoints/step-0000001*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = (home / "runs").iterdir()
    assert json.loads((killed / "run.json").read_text())["state"] == "running"
    assert not (killed / "adapter").exists()
    assert run(["runs", "resume", killed.name]) == 0
    assert run(["train", str(recipe)]) == 0
    (whole,) = (folder for folder in (home / "runs").iterdir() if folder != killed)
    files = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (killed, whole)]
    assert files[0] == files[1]
    assert run(["runs", "resume", killed.name]) == 1  # it has succeeded: there is nothing to resume
