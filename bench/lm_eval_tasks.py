"""ARC, BoolQ and GSM8K of the shared data as tasks of lm-eval, worded as its own; and the same items as Samples of ours.

lm-eval's own tasks fetch their data from a hub. These read files beside them and have the same `doc_to_text`, choices, target and metrics
(lm_eval/tasks/arc/arc_easy.yaml, super_glue/boolq/default.yaml, gsm8k/gsm8k.yaml in 0.4.13).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorimer.data.example import Message
from lorimer.evaluation.task import Sample

NUM_SHOTS = 5
ARC = re.compile(r"Please choose the correct answer to the question: (.*?)\n\n(Answer1: .*?)\n\nAnswer format: \S+", re.DOTALL)
CHOICE = """
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
MATHS = """
output_type: generate_until
doc_to_text: "{text}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
generation_kwargs:
  until: ["Question:", "</s>", "<|im_end|>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {max_tokens}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"}}
      - {{function: take_first}}
"""
QUESTION = "Question: {{question}}\\nAnswer:"
PASSAGE = "{{passage}}\\nQuestion: {{question}}?\\nAnswer:"


def arc_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Question, choices and the right one's place; the file has all of them in one instruction."""
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        found = ARC.fullmatch(row["instruction"])
        assert found is not None, f"{path.name}, row {number}: {row['instruction'][:200]!r}"
        parts = re.split(r"(?:^| )Answer(\d): ", found[2])
        choices = [text.strip() for text in parts[2::2]]
        assert parts[1::2] == [str(place + 1) for place in range(len(choices))], f"{path.name}, row {number}: {found[2]!r}"
        yield {"question": found[1], "choices": choices, "gold": int(row["answer"].removeprefix("answer")) - 1}


def boolq_rows(path: Path) -> Iterator[dict[str, Any]]:
    """lm-eval's choices are "no" and "yes", in this order."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {"passage": row["passage"], "question": row["question"], "choices": ["no", "yes"], "gold": int(row["answer"])}


def gsm8k_rows(path: Path, shots: Path) -> Iterator[dict[str, Any]]:
    """With the first worked examples of the training file before each question."""
    worked = [json.loads(line) for line in shots.read_text(encoding="utf-8").splitlines()[:NUM_SHOTS]]
    before = "".join(f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in worked)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {"shots": before, "question": row["question"], "answer": row["answer"]}


def rows_of(data: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows by task."""
    return {
        "arc_challenge": list(arc_rows(data / "arc" / "arc_challenge_test.json")),
        "arc_easy": list(arc_rows(data / "arc" / "arc_easy_test.json")),
        "boolq": list(boolq_rows(data / "boolq" / "dev.jsonl")),
        "gsm8k": list(gsm8k_rows(data / "gsm8k" / "test.jsonl", data / "gsm8k" / "train_first1500.jsonl")),
    }


def write_tasks(folder: Path, rows: dict[str, list[dict[str, Any]]], max_tokens: int) -> None:
    """Task files of lm-eval with their rows beside them; their names begin with `own_`, lest they be taken for its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
        text = {"boolq": PASSAGE, "gsm8k": "{{shots}}" + QUESTION}.get(name, QUESTION)
        form = MATHS.format(text=text, max_tokens=max_tokens) if name == "gsm8k" else CHOICE.format(text=text)
        head = (
            f"task: own_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {json.dumps(str(folder / name) + '.jsonl')}\n"
        )
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test\nnum_fewshot: 0{form}metadata:\n  version: 1.0\n", encoding="utf-8")


def sample_of(name: str, number: int, row: dict[str, Any]) -> Sample:
    """The same item, for an evaluation of ours without a template.

    lm-eval puts a space between prompt and choice and does not count it into a choice's length; so does a prompt that ends in one.
    """
    if name == "gsm8k":
        prompt, target, choices = f"{row['shots']}Question: {row['question']}\nAnswer:", row["answer"], ()
    else:
        question = f"{row['passage']}\nQuestion: {row['question']}?" if name == "boolq" else f"Question: {row['question']}"
        prompt, choices = f"{question}\nAnswer: ", tuple(row["choices"])
        target = choices[row["gold"]]
    return Sample(id=f"{name}-{number}", prompt=(Message(role="user", content=prompt),), target=target, choices=choices)
