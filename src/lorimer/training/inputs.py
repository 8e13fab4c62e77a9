"""What recipes are trained on: their datasets, and whether their bases are here. No base is loaded, prepared or fetched."""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from lorimer.config import Recipe
from lorimer.data.curate import resolve_dataset
from lorimer.data.dataset import Dataset
from lorimer.errors import LorimerError, NotFoundError
from lorimer.model.base import find_base
from lorimer.model.shipped import SHIPPED


def read_datasets(recipes: Sequence[Recipe]) -> list[Dataset]:
    """Each recipe's dataset; its base is only looked for.

    Raises:
        LorimerError: as `resolve_dataset` and `find_base`; what is wrong with any recipe's data or base is in one message.
    """
    datasets, problems = list[Dataset](), list[LorimerError]()
    for recipe in recipes:
        try:
            datasets.append(resolve_dataset(recipe))
        except LorimerError as exc:
            problems.append(exc)
    problems += _missing_bases(recipes)
    if problems:
        raise type(problems[0])("; ".join(dict.fromkeys(map(str, problems)))) from problems[0]
    return datasets


def _missing_bases(recipes: Sequence[Recipe]) -> list[NotFoundError]:
    problems = list[NotFoundError]()
    for name in dict.fromkeys(recipe.base for recipe in recipes):
        try:
            if not _takes_minutes(name):
                find_base(name)
        except NotFoundError as exc:
            problems.append(exc)
    return problems


def _takes_minutes(name: str) -> bool:
    """Whether to find it may mean to prepare or to fetch it."""
    return (name in SHIPPED and find_spec(SHIPPED[name].package) is not None) or os.environ.get("HF_HUB_OFFLINE", "1") == "0"
