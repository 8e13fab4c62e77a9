"""How a base's template shows calls: read off it where it does, refused where it does not or where markers are part of it."""

import pytest

from fakes import byte_tokenizer
from lorimer.model.calls import CallShape, read_call_shape
from lorimer.model.chat import Renderer

LOOP = "{%% for m in messages %%}<start_of_turn>{{ m.role }}\n{{ m.content }}%s<end_of_turn>\n{%% endfor %%}"
TOOLS = "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
END = "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
CALL = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
TAGGED = TOOLS + LOOP % ("{% for c in m.tool_calls or [] %}{{ '\n<call>\n' }}" + CALL + "\n</call>{% endfor %}") + END  # as Qwen
LISTED = (
    TOOLS
    + LOOP % ("{% if m.tool_calls %}[{% for c in m.tool_calls %}" + CALL + "{{ ', ' if not loop.last }}{% endfor %}]{% endif %}")
    + END
)
SINGLE = (
    TOOLS
    + LOOP
    % (  # as Llama 3.1
        "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
        '{% set c = m.tool_calls[0] %}{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endif %}'
    )
    + END
)
MARKED = TOOLS + LOOP % "{% for c in m.tool_calls or [] %}<pad>{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}" + END
THINKING = TAGGED.replace("{{ m.content }}", "{{ '<think>\n\n</think>\n' if m.role == 'assistant' }}{{ m.content }}")

ARGUMENTS = '", "arguments": '
TAGGED_SHAPE = CallShape(before='<call>\n{"name": "', between=ARGUMENTS, glue='}\n</call>\n<call>\n{"name": "', after="}\n</call>")


def shape_of(template: str | None) -> CallShape | None:
    tokenizer = byte_tokenizer.__wrapped__()
    tokenizer.chat_template = template
    return read_call_shape(Renderer(tokenizer))


@pytest.mark.parametrize(
    ("template", "shape"),
    [
        (TAGGED, TAGGED_SHAPE),
        (THINKING, TAGGED_SHAPE),
        (LISTED, CallShape(before='[{"name": "', between=ARGUMENTS, glue='}, {"name": "', after="}]")),
        (SINGLE, CallShape(before='{"name": "', between='", "parameters": ', glue=None, after="}")),
    ],
)
def test_shape_is_what_the_template_shows(template: str, shape: CallShape) -> None:
    assert shape_of(template) == shape


@pytest.mark.parametrize(
    "template",
    [
        None,
        LOOP % "" + END,  # knows nothing of tools
        TOOLS + LOOP % "" + END,  # shows no calls
        TAGGED.replace(TOOLS, ""),  # does not say what may be called
        TAGGED.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"),  # nor what came of it
        MARKED,
    ],
)
def test_template_that_does_not_show_all_has_no_shape(template: str | None) -> None:
    assert shape_of(template) is None
