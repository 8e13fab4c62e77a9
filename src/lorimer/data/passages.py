"""The texts inside a row: how a row rule reads them, and puts others in their place."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from lorimer.data.example import Example

NUM_REASONS = 4


def passages(example: Example) -> Iterator[str]:
    """Every text of a row, the rejected answer too."""
    if example.text is not None:
        yield example.text
    for message in example.messages:
        yield message.content
    if example.rejected is not None:
        yield example.rejected


def learned(example: Example) -> str:
    """What a model would learn to write: the answers, or the whole text."""
    if example.text is not None:
        return example.text
    return "\n".join(message.content for message in example.messages if message.role == "assistant")


def with_passages(example: Example, rewrite: Callable[[str], str]) -> Example:
    """The row with every text rewritten; the same object where nothing changed."""
    if example.text is not None:
        text = rewrite(example.text)
        return example if text == example.text else replace(example, text=text)
    contents = [rewrite(message.content) for message in example.messages]
    rejected = None if example.rejected is None else rewrite(example.rejected)
    if rejected == example.rejected and all(new == message.content for new, message in zip(contents, example.messages, strict=True)):
        return example
    messages = tuple(replace(message, content=new) for message, new in zip(example.messages, contents, strict=True))
    return replace(example, messages=messages, rejected=rejected)


def is_emptied(before: Example, after: Example) -> bool:
    """Whether a rewrite left nothing of a text that said something."""
    return any(old.strip() and not new.strip() for old, new in zip(passages(before), passages(after), strict=True))


def list_reasons(reasons: Iterator[str] | list[str]) -> str:
    """Reasons as one line for the card, each once, in order; never more than a few."""
    distinct = list(dict.fromkeys(reasons))
    more = f" and {len(distinct) - NUM_REASONS} more" if len(distinct) > NUM_REASONS else ""
    return ", ".join(distinct[:NUM_REASONS]) + more
