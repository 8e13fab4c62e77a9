"""Plans beside what their runs then needed: two recipes calibrate, the others were never seen.

    make bench-plan

Every run is the command `lorimer train`, in a process and with a home of its own but for the calibration file.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from report import Row, draw_bars, median_rows, write_results
from train import DATA, ROOT, gemma

SHARED = DATA.parents[1]
BANKING = f"dataset: {DATA}\ncolumns: {{prompt: text, completion: category}}\npreset: classification\n"
BITEXT = SHARED / "bitext_customer_support" / "bitext_customer_support.csv"
SUPPORT = f"dataset: {BITEXT}\ncolumns: {{prompt: instruction, completion: response}}\n"
DIALOG = f"dataset: {SHARED / 'mts_dialog' / 'MTS-Dialog-TrainingSet.csv'}\ncolumns: {{prompt: dialogue, completion: section_text}}\n"
HELPDESK = f"dataset: {ROOT / 'src' / 'lorimer' / 'data' / 'helpdesk' / 'tickets.jsonl'}\npreset: extraction\n"
CALIBRATION = {
    "helpdesk, batch 8": HELPDESK + "batch_size: 8\nsteps: 20\n",
    "banking77, batch 16": BANKING + "batch_size: 16\nsteps: 20\n",
}
UNSEEN = {
    "banking77, rank 64, batch 32": BANKING + "rank: 64\nbatch_size: 32\nsteps: 12\n",
    "helpdesk, upper 6 layers": HELPDESK + "layers: last 6\nbatch_size: 16\nsteps: 20\n",
    "customer support, long answers": SUPPORT + "batch_size: 8\nsteps: 12\n",
    "doctor's dialogues, long prompts": DIALOG + "batch_size: 4\nsteps: 10\nmax_len: 1500\n",
}


def run(recipe: str, home: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Train a recipe; what the run needed, and what its plan had said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(f"base: {gemma()}\nname: planned\n{recipe}", encoding="utf-8")
        command = [str(Path(sys.executable).with_name("lorimer")), "train", str(path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LORIMER_HOME": str(home)}, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    actual = json.loads(done.stdout.strip().splitlines()[-1])
    return actual, json.loads((Path(actual["folder"]) / "plan.json").read_text(encoding="utf-8"))


def main() -> None:
    """Calibrate, predict, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    rows = list[Row]()
    for _ in range(args.repeats):
        home = Path(tempfile.mkdtemp())
        for case, recipe in {**CALIBRATION, **UNSEEN}.items():
            actual, planned = run(recipe, home)
            seen = "calibrating" if case in CALIBRATION else "unseen"
            for metric, key, name in (("memory", "memory_bytes", "peak_bytes"), ("time", "seconds", "seconds")):
                ratio = planned[key]["middle"] / actual[name]
                inside = planned[key]["low"] <= actual[name] <= planned[key]["high"]
                rows.append(Row(system=f"plan, {seen}", case=case, metric=f"{metric}, planned over actual", value=ratio, unit="ratio"))
                rows.append(Row(system=f"plan, {seen}", case=case, metric=f"{metric}, within its range", value=float(inside), unit="share"))
                print(
                    f"{case:44} {metric:7} planned {planned[key]['middle']:.4g}, actual {actual[name]:.4g}, ratio {ratio:.3f}", flush=True
                )
        shutil.rmtree(home)
    medians = median_rows(rows)
    worst = {
        f"plan_{metric}_error_max": max(
            abs(row.value - 1) for row in medians if "unseen" in row.system and row.metric == f"{metric}, planned over actual"
        )
        for metric in ("memory", "time")
    }
    write_results("plan", medians, worst)
    bars = {f"{row.case}: {row.metric.partition(',')[0]}": row.value for row in medians if row.metric.endswith("over actual")}
    draw_bars("plan", "Plans beside what their runs needed (1 is right)", "planned over actual", bars)
    for name, value in worst.items():
        print(f"{name:28} {value:.3f}")


if __name__ == "__main__":
    main()
