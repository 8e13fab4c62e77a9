"""`lorimer adapters merge`: several adapters become one, with files of its own."""

from typing import Annotated, get_args

import typer

from lorimer.cli.console import console, print_json, working
from lorimer.errors import UsageError

HELP = "Make one adapter, with files of its own, of several. Example: lorimer adapters merge sql tone --name reports --method ties"


def merge(
    names: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="Two or more: `sql@v3 tone`.")],
    name: Annotated[str, typer.Option(help="What the merge is called; each new one is its next version.")],
    method: Annotated[str, typer.Option(help="linear (exact, ranks add up), svd, ties or dare.")] = "linear",
    weights: Annotated[str, typer.Option(help="One number each with commas between, as `0.7,1`; by default 1.")] = "",
    density: Annotated[float, typer.Option(help="Share of each change's entries that ties and dare keep.")] = 0.5,
    rank: Annotated[int | None, typer.Option(help="Of the result; by default the sum (linear) or the highest of theirs.")] = None,
    seed: Annotated[int, typer.Option(help="What dare draws from.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Merge, and print what came of it."""
    from lorimer.database import open_database
    from lorimer.registry.merge import MergeRecipe, Method, merge_adapters
    from lorimer.registry.registry import Registry

    known = {each: each for each in get_args(Method)}
    if method not in known:
        raise UsageError(f"{method!r} is no way to merge: give one of {', '.join(known)}")
    try:
        numbers = tuple(float(part) for part in weights.split(",")) if weights else None
    except ValueError as exc:
        raise UsageError(f"{weights!r} are no weights: write one number for each adapter with commas between, as '0.7,1'") from exc
    recipe = MergeRecipe(method=known[method], weights=numbers, density=density, rank=rank, seed=seed)
    with working("Merging"):
        merged = merge_adapters(Registry(open_database()), names, name=name, recipe=recipe)
    version = merged.version
    if json:
        print_json({**version.to_json(), "kept_share": merged.kept_share})
        return
    console.print(
        f"[bold]{version.id}[/bold] is {method} of {len(version.parents)} adapters, rank {version.rank}, holds "
        f"{merged.kept_share:.1%} of their combined change [dim]{version.digest[:16]}[/dim]",
        highlight=False,
    )
    console.print(f"It has met no gate yet: `lorimer evaluate {version.id}`.", highlight=False)
