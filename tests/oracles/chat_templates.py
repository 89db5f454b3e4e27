# ruff: noqa: E501
"""Records what transformers' apply_chat_template makes of the templates below.

    python tests/oracles/chat_templates.py tests/text/data/chat_templates.json

The templates are our own; they use what the templates of well-known models use.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    "chatml": """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nBe helpful<|im_end|>\\n' }}
{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{% endif %}""",
    "bos_and_refusal": """{{ bos_token }}{% if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for m in rest -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must alternate') -}}
    {%- endif -%}
    {%- if m.role == 'user' -%}[INST] {{ (system ~ ' ' if loop.first and system else '') ~ m.content }} [/INST]
    {%- else -%}{{ ' ' ~ m.content ~ eos_token }}
    {%- endif -%}
{%- endfor -%}""",
    "tools": """{%- set ns = namespace(last=-1, calls=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools is not none and tools %}
# Tools <tools>
{%- for tool in tools %}
{{ tool | tojson }}
{{ tool['function']['parameters'] | tojson(indent=2) }}
{%- endfor %}
</tools>
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}{% continue %}{% endif %}
    {%- if m.tool_calls is defined and m.tool_calls %}
        {%- for call in m.tool_calls %}
            {%- set ns.calls = ns.calls + 1 %}
<call n={{ ns.calls }}>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</call>
        {%- endfor %}
    {%- elif m.content is string %}
<{{ m.role | upper }}{{ '*' if loop.index0 == ns.last }}>{{ m.content }}
    {%- else %}
        {%- for part in m.content if part.type == 'text' %}{{ part['text'] }}{{ ', ' if not loop.last }}{% endfor %}
    {%- endif %}
    {%- if loop.index > 5 %}{% break %}{% endif %}
{%- endfor %}
""",
    "generation": """{% for m in messages %}
{% if m.role == 'assistant' %}
{% generation %}
{% set shout = m.content | upper %}
{{ shout }}{{ eos_token }}
{% endgeneration %}
{% else %}
{{ m.role }}: {{ m.content }}
{% endif %}
{% endfor %}
{{ shout is defined }}""",
    "arguments": """{{ strftime_now('%Y') | length }} {{ date_string or 'no date' }} {{ enable_thinking is defined and enable_thinking is false }}
{% for d in documents or [] %}{{ loop.index }}. {{ d.title }}{{ '\\n' }}{% endfor %}
{%- macro show(text, times=1) %}[{{ text * times }}]{% endmacro %}
{{ show(messages[-1].content, times=2) }} {{ messages | length }} {{ messages | map(attribute='role') | join('/') }}
{{ messages[0].content.split(' ')[-1].strip() }} {{ '%s=%d' % ('n', 3) }} {{ {'b': 1, 'a': '<é&>'} | tojson(sort_keys=true) }}
{{ missing }}{{ missing is undefined }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for k, v in {'x': 1, 'y': none}.items() %}{{ k }}:{{ v }} {% endfor %}{{ 7 // 2 }}{{ 2 ** 3 }}{{ [1] + [2] }}{{ none }}""",
}

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <now> in a city, é",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CHATS = {
    "plain": {"messages": [{"role": "user", "content": "What is 1 < 2 & 'three'?"}]},
    "turns": {
        "messages": [
            {"role": "system", "content": "Be  brief. "},
            {"role": "user", "content": "你好 👍\n\nbye"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "more"},
        ],
        "add_generation_prompt": False,
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "Weather in Köln?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": {"city": "Köln"}},
                    }
                ],
            },
            {"role": "tool", "content": "rain"},
            {"role": "user", "content": "thanks"},
        ],
        "tools": [TOOL],
    },
    "arguments": {
        "messages": [{"role": "user", "content": "go on"}],
        "template_args": {
            "enable_thinking": False,
            "date_string": "1 May",
            "documents": [{"title": "One", "text": "1"}, {"title": "Two", "text": "2"}],
        },
    },
}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template: str, chat: dict) -> dict:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **SPECIAL_TOKENS
    )
    try:
        text = tokenizer.apply_chat_template(
            chat["messages"],
            tools=chat.get("tools"),
            add_generation_prompt=chat.get("add_generation_prompt", True),
            tokenize=False,
            **chat.get("template_args", {}),
        )
    except Exception as exc:
        return {"error": str(exc)}
    return {"text": text}


def main(path: Path) -> None:
    cases = [
        {"template": name, "chat": chat_name, **render(template, chat)}
        for name, template in TEMPLATES.items()
        for chat_name, chat in CHATS.items()
    ]
    data = {
        "templates": TEMPLATES,
        "chats": CHATS,
        "special_tokens": SPECIAL_TOKENS,
        "cases": cases,
    }
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
