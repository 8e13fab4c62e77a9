"""Gates that ask suites: many adapters in one pass, a gate of one's own recipe, sealed items, attempts, and no way round a promotion."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from judges import SCORE_PROMPT, answers_in, serve_judge

from fakes import save_tiny_base
from lorimer.cli.main import run
from lorimer.config import read_recipe
from lorimer.data.curate import curate
from lorimer.database import begin_write, open_database
from lorimer.errors import GateFailedError, NotFoundError
from lorimer.evaluation.gates import GateResult
from lorimer.evaluation.pages.page import report_folder
from lorimer.evaluation.results import suite_report_from_json
from lorimer.judging import SuiteFinding, ask_suites, judge_version, needs_judging
from lorimer.model.base import load_base
from lorimer.pipeline import train_recipes
from lorimer.registry.audit import record
from lorimer.registry.promotion import promote
from lorimer.registry.recipes import digest_of_recipe
from lorimer.registry.records import AdapterVersion
from lorimer.registry.registry import Registry
from lorimer.registry.seal import SEAL

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base, a dataset with one answer, two versions that learned it, a suite."""
    folder = tmp_path_factory.mktemp("judging")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORIMER_HOME", str(folder / "home"))
    patch.setenv("LORIMER_ACTOR", "ada")
    save_tiny_base(folder / "base", "gemma3")
    rows = [{"prompt": f"ticket number {n}", "completion": "ok"} for n in range(400)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curate([folder / "rows.jsonl"], name="tickets")
    write_suite(folder)
    for seed in SEEDS:
        write_recipe(folder, seed=seed)
        list(train_recipes([read_recipe(folder / "recipe.yaml")]))
    yield folder
    patch.undo()


def write_suite(folder: Path, rule: str = "{better_than: base}") -> None:
    items = [{"prompt": f"call {n}", "target": "ok"} for n in range(60)]
    (folder / "calls.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    choices = [{"prompt": f"note {n} ", "target": "ok", "choices": ["ok", "no"]} for n in range(40)]
    (folder / "notes.jsonl").write_text("".join(json.dumps(item) + "\n" for item in choices))
    texts = [{"target": f"a text of its own, number {n}"} for n in range(20)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(item) + "\n" for item in texts))
    (folder / "desk.yaml").write_text(
        "suite: desk\nversion: 1\ntasks:\n"
        f"  - {{name: calls, family: domain, data: calls.jsonl, metric: exact, rule: {rule}}}\n"
        "  - {name: notes, family: general, kind: choice, metric: choice, data: notes.jsonl, rule: {not_worse_than: base, margin: 0.5}}\n"
        "  - {name: texts, family: general, kind: text, metric: divergence, data: texts.jsonl, rule: {at_most: 100}}\n"
    )


def write_recipe(folder: Path, *, seed: int, gate: dict[str, object] | None = None) -> None:
    keys = {"base": str(folder / "base"), "dataset": "tickets", "name": "demo", "metric": "exact", "learning_rate": 0.02, "rank": 4,
            "steps": 40, "seed": seed, "gate": {"min_items": 3, **(gate or {})}}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))


@pytest.fixture
def registry(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    """That home, copied, as everybody's own."""
    shutil.copytree(made / "home", tmp_path / "home", dirs_exist_ok=True)
    monkeypatch.setenv("LORIMER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORIMER_ACTOR", "ada")
    engine = open_database()
    yield Registry(engine)
    engine.dispose()


def want(registry: Registry, version: AdapterVersion, home: Path, made: Path, **gate: object) -> None:
    """As if a version had been registered with another gate in its recipe."""
    path = home / "runs" / version.run_id / "recipe.yaml"
    keys = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**keys, "gate": {"min_items": 3, **gate}}))
    with begin_write(registry.engine) as connection:
        details = {"recipe_digest": digest_of_recipe(read_recipe(path))}
        record(connection, actor="ada", action="register", subject=version.id, details=details)


def test_adapters_are_asked_in_one_pass_and_each_is_what_it_is_alone(registry: Registry, made: Path, home: Path) -> None:
    first, second = registry.history("demo")[::-1]
    base = load_base(first.base_name)
    together = [one for one in ask_suites([first, second], base, [str(made / "desk.yaml")], against=None) if isinstance(one, SuiteFinding)]
    assert [finding.version_id for finding in together] == ["demo@v1", "demo@v2"]
    assert [finding.suite.attempt for finding in together] == [1, 2]
    for finding in together:
        assert [check.verdict for check in finding.checks] == ["PASS"] * 3
        kept = json.loads((report_folder(finding.report.digest) / "report.json").read_text())
        assert suite_report_from_json(kept) == finding.report
    shutil.rmtree(home / "answers")
    (alone,) = [one for one in ask_suites([second], base, [str(made / "desk.yaml")], against=first) if isinstance(one, SuiteFinding)]
    assert alone.suite.attempt == 2  # the same adapter is no new attempt
    for mine, theirs in zip(alone.report.tasks, together[1].report.tasks, strict=True):
        assert [item.candidate.answer for item in mine.items] == [item.candidate.answer for item in theirs.items]


def test_a_pass_by_another_recipe_promotes_nothing(registry: Registry, made: Path, home: Path) -> None:
    """The same bytes under another name, with a weaker gate, leave a result that is not this one's."""
    version = registry.find("demo@v1")
    base = load_base(version.base_name)
    *_, weak = judge_version(version, base)
    assert isinstance(weak, GateResult)
    assert (weak.verdict, needs_judging(registry, version)) == ("PASS", False)
    want(registry, version, home, made, suites=[str(made / "desk.yaml")])
    assert needs_judging(registry, version)
    with pytest.raises(GateFailedError, match=f"by another recipe \\({weak.recipe_digest[:12]}\\)"):
        promote(registry, version)
    *_, own = judge_version(version, base)
    assert isinstance(own, GateResult)
    assert own.recipe_digest != weak.recipe_digest
    assert promote(registry, version).version == version.version


def test_a_gate_with_suites_is_whole_or_none(registry: Registry, made: Path, home: Path) -> None:
    version = registry.find("demo@v1")
    want(registry, version, home, made, suites=[str(made / "desk.yaml")])
    base = load_base(version.base_name)
    *_, result = judge_version(version, base, opens_reserve=False)
    assert isinstance(result, GateResult)
    assert (result.verdict, result.is_final, len(result.checks)) == ("PASS", False, 4)
    assert needs_judging(registry, version)
    with pytest.raises(GateFailedError, match="judged without the sealed items"):
        promote(registry, version)
    made_now = list(judge_version(version, base))
    result = made_now[-1]
    assert isinstance(result, GateResult)
    assert (result.verdict, result.is_final) == ("PASS", True)
    (finding,) = [one for one in made_now if isinstance(one, SuiteFinding)]
    sealed = [item for task in finding.report.tasks for item in task.items if item.prompt == "(sealed)"]
    assert 5 < len(sealed) < 60
    assert all((item.target, item.candidate.answer) == ("(sealed)", "(sealed)") for item in sealed)
    assert registry.newest_gate(version) == result
    assert not needs_judging(registry, version)
    assert promote(registry, version).version == 1


def test_promoting_runs_the_gate_and_stops_at_it(registry: Registry, made: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = registry.history("demo")[::-1]
    assert run(["adapters", "promote", "demo@v1"]) == 0
    assert registry.newest_gate(first) is not None
    write_suite(home, rule="{at_least: 1.0}")
    want(registry, second, home, made, suites=[str(home / "desk.yaml")], champion="not_worse", margin=0.5)
    assert run(["adapters", "promote", "demo@v2"]) == 5
    gate = registry.newest_gate(second)
    assert gate is not None
    assert gate.incumbent_digest == first.digest
    names = [check.name for check in gate.checks]
    assert names[:3] == ["beats_base", "domain/against_base", "domain/against_champion"]
    assert names[3:] == ["domain/calls", "general/notes", "general/texts", "desk/reserve"]
    assert registry.resolve("demo@champion").version == 1
    assert run(["adapters", "promote", "demo@v2", "--override-gate"]) == 2
    assert run(["adapters", "promote", "demo@v2", "--override-gate", "--reason", "the fair is tomorrow"]) == 0
    assert registry.resolve("demo@champion").version == 2
    capsys.readouterr()


def test_a_gate_that_was_weakened_afterwards_promotes_nothing(
    registry: Registry, made: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = registry.find("demo@v1")
    path = home / "runs" / version.run_id / "recipe.yaml"
    kept = path.read_text()
    path.write_text(yaml.safe_dump({**yaml.safe_load(kept), "gate": {"min_items": 1}}))
    assert run(["adapters", "promote", "demo@v1"]) == 6
    assert f"{path}' is not the recipe that demo@v1 was registered with" in " ".join(capsys.readouterr().err.split())
    assert registry.newest_gate(version) is None
    assert registry.aliases("demo") == ()
    path.write_text(kept + "# a remark\n")
    assert run(["adapters", "promote", "demo@v1"]) == 0
    assert registry.resolve("demo@champion").version == 1


def test_what_is_imported_is_held_to_the_recipe_that_came_with_it(
    registry: Registry, made: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(registry.find("demo@v1").path, folder)
    (folder / "adapter.lock.json").unlink()
    (folder / SEAL).unlink()
    write_recipe(tmp_path, seed=0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(tmp_path / "base"), str(made / "base")))
    bare = ["adapters", "import", str(folder), "--allow-unsigned", "--base", str(made / "base")]
    assert run([*bare, "--name", "bare"]) == 0
    assert run(["evaluate", "bare"]) == 2
    assert "import it with `--recipe FILE`" in " ".join(capsys.readouterr().err.split())
    assert run(["adapters", "promote", "bare"]) == 3
    assert run([*bare, "--name", "bare", "--recipe", str(recipe)]) == 2  # what these bytes are held to under that name is settled
    assert run([*bare[:-2], "--name", "held", "--recipe", str(recipe)]) == 0
    (kept,) = (home / "recipes").glob("*.yaml")
    assert read_recipe(kept).dataset == registry.find("demo@v1").dataset_digest
    assert run(["adapters", "promote", "held"]) == 0
    kept.write_text(kept.read_text().replace("min_items: 3", "min_items: 1"))
    assert run(["evaluate", "held"]) == 6
    capsys.readouterr()


def test_a_suite_that_is_not_there_stops_before_anything_is_asked(registry: Registry, made: Path, home: Path) -> None:
    version = registry.find("demo@v1")
    want(registry, version, home, made, suites=["nowhere"])
    judged = judge_version(version, load_base(version.base_name))
    with pytest.raises(NotFoundError, match="there is no suite 'nowhere'"):
        next(judged)
    assert registry.newest_gate(version) is None


def test_the_command_says_what_every_suite_found(
    registry: Registry, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = ["--suite", str(made / "desk.yaml"), "--suite", "domain"]
    assert run(["evaluate", "demo@v1", "demo@v2", *suites, "--against", "demo@v1"]) == 5  # two versions that are alike: 32 items are few
    assert "against_champion" in capsys.readouterr().out
    command = ["evaluate", "demo@v2", "--suite", str(made / "desk.yaml"), "--time", "--junit", str(tmp_path / "ci"), "--json"]
    assert run(command) == 0
    (told,) = json.loads(capsys.readouterr().out)["adapters"]
    card = Path(told["reports"]["desk@v1"]).read_text()
    assert card.count("<td>10</td>") == 2  # answers timed, of candidate and base
    assert 'failures="0"' in (tmp_path / "ci" / "demo-v2-desk-v1.xml").read_text()
    assert run(["evaluate", "demo@v2", *suites, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["adapters"]
    assert told["gate"]["verdict"] == "PASS"
    assert set(told["reports"]) == {"domain@v1", "desk@v1"}
    assert run(["evaluate", "demo@v1", "demo@v2"]) == 2
    assert "with --suite" in capsys.readouterr().err
    assert registry.newest_gate(registry.find("demo@v2")) is None  # suites alone are no gate


def says_ok(prompt: str, index: int) -> str:
    return "Verdict: yes" if answers_in(prompt)[0].strip() == "ok" else "Verdict: no"


def write_judged_suite(folder: Path, url: str) -> Path:
    keys = {"judge": "desk", "endpoint": url, "model": "any", "kind": "score", "scale": "yes-no", "prompt": SCORE_PROMPT}
    (folder / "judge.yaml").write_text(yaml.safe_dump(keys))
    (folder / "calls.jsonl").write_text("".join(json.dumps({"prompt": f"call {n}", "target": "ok"}) + "\n" for n in range(60)))
    task = {"name": "manners", "family": "fidelity", "data": "calls.jsonl", "metric": "judge", "judge": "judge.yaml", "max_tokens": 8,
            "rule": {"better_than": "base"}}  # fmt: skip
    (folder / "judged.yaml").write_text(yaml.safe_dump({"suite": "judged", "version": 1, "tasks": [task]}))
    return folder / "judged.yaml"


def test_a_judge_decides_once_it_agrees_with_people(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_judge(says_ok) as server:
        suite = write_judged_suite(tmp_path, server.url)
        assert run(["evaluate", "demo@v1", "--suite", str(suite), "--json"]) == 3
        (told,) = json.loads(capsys.readouterr().out)["adapters"]
        assert {check["name"]: check["verdict"] for check in told["gate"]["checks"]} == {"judge": "ERROR", "fidelity/manners": "PASS"}
        labels = [{"question": f"q{n}", "answer": "ok" if n % 2 else "no", "label": "yes" if n % 2 else "no"} for n in range(120)]
        (tmp_path / "labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
        assert run(["judges", "calibrate", str(tmp_path / "judge.yaml"), "--labels", str(tmp_path / "labels.jsonl")]) == 0
        num_opened = server.num_opened
        assert run(["evaluate", "demo@v1", "demo@v2", "--suite", str(suite)]) == 0
        assert server.num_opened == num_opened + 1  # opened once, however many adapters it judges
    capsys.readouterr()


def test_a_judge_that_babbles_decides_nothing(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_judge(lambda prompt, index: "It depends.") as server:
        assert run(["evaluate", "demo@v1", "--suite", str(write_judged_suite(tmp_path, server.url)), "--json"]) == 3
        (told,) = json.loads(capsys.readouterr().out)["adapters"]
        assert {check["verdict"] for check in told["gate"]["checks"]} == {"ERROR"}
