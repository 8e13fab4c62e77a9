"""`lorimer data augment`: paraphrases through an endpoint; `cli/data.py` registers it."""

import os
from typing import Annotated

import typer

from lorimer.cli.console import console, error_console, print_json, progress_bar
from lorimer.errors import ConfigError


def augment(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset's name or digest.")],
    endpoint: Annotated[str, typer.Option(metavar="URL", help="Root of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(metavar="M", help="The model to ask.")],
    key_env: Annotated[
        str | None, typer.Option("--key-env", metavar="VAR", help="The environment variable that holds the API's key.")
    ] = None,
    share: Annotated[float, typer.Option(help="Share of the new training split that is synthetic, at most 0.5.")] = 0.2,
    name: Annotated[str | None, typer.Option(metavar="N", help="Name of the new dataset; by default the old one's name.")] = None,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Synthetic rows at most.")] = 3_000,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens to spend at most.")] = 1_000_000,
    temperature: Annotated[float, typer.Option(help="0 to 2; higher varies more.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other rows.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Questions in flight at a time.")] = 4,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Add paraphrases of training rows to a dataset, as a new version.

    Validation and test rows stay as they are, and no paraphrase comes near them; every synthetic row names its parent. Stopped, the same
    command goes on where it was.

    Example: lorimer data augment support --endpoint http://127.0.0.1:8000/v1 --model gemma3-270m --share 0.2 --name support-more
    """
    from lorimer.data.augment import Augmentation, Progress, num_wanted
    from lorimer.data.augment import augment as run_augment
    from lorimer.data.chat_endpoint import ChatEndpoint
    from lorimer.data.dataset import Dataset, check_name, read_dataset

    if name is not None:
        check_name(name)
    settings = Augmentation(
        model=model, share=share, max_rows=max_rows, max_tokens=max_tokens, temperature=temperature, seed=seed, concurrency=concurrency
    )
    asked = ChatEndpoint(url=endpoint, key=_read_key(key_env))
    found = read_dataset(dataset)
    made: Dataset | None = None
    with progress_bar() as bar:
        task = bar.add_task("paraphrases", total=num_wanted(len(found.train), settings), note="")
        for step in run_augment(found, asked, settings, name=name):
            if isinstance(step, Progress):
                note = f"{step.num_refused:,} refused, {step.num_tokens:,} tokens"
                bar.update(task, total=step.num_wanted, completed=step.num_made, note=note)
            else:
                made = step
    assert made is not None
    described = made.card["augmentations"][-1]
    if json:
        print_json({"name": made.name, "digest": made.digest, "path": str(made.path), **described})
        return
    console.print(f"[bold]{made.name}[/bold] [dim]{made.digest[:16]}[/dim]", highlight=False)
    console.print(f"  {made.card['findings'][-1]['message']}", highlight=False, markup=False)
    if described["num_tokens"] >= max_tokens:
        error_console.print(f"Stopped at --max-tokens {max_tokens:,}.", highlight=False)


def _read_key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(f"--key-env {variable!r}: that variable is not set: set it to the endpoint's key, or leave the option out")
    return key
