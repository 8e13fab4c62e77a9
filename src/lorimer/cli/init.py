"""`lorimer init`: five questions, one recipe."""

from pathlib import Path

import typer

from lorimer.cli.console import console, error_console, print_json
from lorimer.config import LANGUAGE_PATTERN, ColumnNames, Recipe, parse_recipe, recipe_yaml
from lorimer.errors import UsageError

USE_CASES = {
    "classification": "one label out of a list",
    "extraction": "a small JSON object",
    "instruction": "varied tasks, varied answers",
    "style": "a manner of writing",
    "domain": "the language and facts of a field",
    "chat": "conversations of several turns",
}
SUCCESS = {
    "exact": "the answer is exactly the wanted text",
    "exact_json": "the answer is a JSON object with exactly the wanted values",
    "label": "the answer is the wanted label, case and full stop aside",
    "contains": "the wanted text appears in the answer",
}


def init(
    use_case: str = typer.Option(None, help=f"One of {', '.join(USE_CASES)}."),
    languages: str = typer.Option(None, help="Languages to serve, by comma (en,de); `any` where examples carry no language."),
    data: Path = typer.Option(None, help="JSONL or CSV file with the examples."),
    base: str = typer.Option(None, help="gemma3-270m, a folder in Hugging Face format, or a hub id."),
    success: str = typer.Option(None, help=f"How an answer is judged: {', '.join(SUCCESS)}."),
    at_least: float = typer.Option(None, min=0, max=1, help="Share of right answers that counts as success (0 to 1)."),
    prompt_column: str = typer.Option(None, help="Column with the question, where its name does not say so."),
    completion_column: str = typer.Option(None, help="Column with the wanted answer, where its name does not say so."),
    output: Path = typer.Option(Path("recipe.yaml"), help="The recipe to write."),
    force: bool = typer.Option(False, help="Overwrite an existing recipe."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Ask five questions and write the recipe with its gate; every answer can be a flag.

    Example: lorimer init --use-case classification --languages en --data tickets.csv --base gemma3-270m --success label --at-least 0.9
    """
    from lorimer.data.reading import read_rows
    from lorimer.storage import write_text
    from lorimer.training.presets import PRESETS

    if output.exists() and not force:
        raise UsageError(f"{str(output)!r} exists: choose another with --output, or overwrite it with --force")
    use_case = use_case or _ask("What is the adapter for?", USE_CASES, "classification")
    _check("--use-case", use_case, USE_CASES)
    languages = languages or typer.prompt("Which languages should it serve? (en,de or any)", default="any", err=True)
    data = data or Path(typer.prompt("Where are the examples? (JSONL or CSV file)", err=True))
    columns = ColumnNames(prompt=prompt_column, completion=completion_column) if prompt_column or completion_column else None
    result = read_rows(data, columns, None)
    base = base or typer.prompt("Which base?", default="gemma3-270m", err=True)
    success = success or _ask("When is an answer right?", SUCCESS, PRESETS[use_case].metric)  # type: ignore[index]
    _check("--success", success, SUCCESS)
    if at_least is None:
        at_least = typer.prompt("What share of right answers counts as success?", default=0.8, type=float, err=True)
    recipe = _recipe(use_case, languages, data, base, success, at_least, columns, output)
    write_text(output, recipe_yaml(recipe))
    if as_json:
        print_json(
            {"recipe": str(output), "shape": result.shape, "num_examples": len(result.examples), "num_problems": len(result.problems)}
        )
        return
    console.print(f"{data}: {len(result.examples)} examples, recognised as {result.shape}", highlight=False)
    for problem in result.problems[:5]:
        console.print(f"  {problem.source}: {problem.reason}", highlight=False)
    console.print(f"Recipe -> {output}\nNext: lorimer plan {output} && lorimer train {output}", highlight=False)


def _recipe(
    use_case: str, languages: str, data: Path, base: str, success: str, at_least: float, columns: ColumnNames | None, output: Path
) -> Recipe:
    import re

    named = [] if languages.strip() == "any" else [part.strip() for part in languages.split(",") if part.strip()]
    wrong = [part for part in named if not re.fullmatch(LANGUAGE_PATTERN, part)]
    if wrong:
        raise UsageError(f"--languages: {', '.join(map(repr, wrong))} is no language tag: write them as en,de,pt-BR or `any`")
    value = {
        "base": base,
        "dataset": str(data.absolute()),
        "preset": use_case,
        "languages": named or None,
        "metric": success,
        "columns": columns.model_dump(exclude_none=True) if columns else None,
        "gate": {"at_least": at_least, "beats_base": True},
    }
    return parse_recipe({key: part for key, part in value.items() if part is not None}, str(output))


def _ask(question: str, choices: dict[str, str], default: str) -> str:
    error_console.print(question)
    for name, meaning in choices.items():
        error_console.print(f"  {name}: {meaning}", highlight=False)
    return str(typer.prompt("Your choice", default=default, err=True))


def _check(flag: str, value: str, choices: dict[str, str]) -> None:
    if value not in choices:
        raise UsageError(f"{flag}: {value!r} is not one of {', '.join(choices)}")
