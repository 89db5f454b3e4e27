# ruff: noqa: E501
"""Chat templates: the text of transformers, and every way in which a template can misbehave."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from ovgen.errors import ModelFormatError, RequestError, TemplateError
from ovgen.text.chat_template import ChatTemplate, load_chat_template

RECORDED = json.loads(
    Path(__file__).with_name("data").joinpath("chat_templates.json").read_text(encoding="utf-8")
)
USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda c: f"{c['template']}-{c['chat']}")
def test_equals_transformers(case):
    template = ChatTemplate(
        RECORDED["templates"][case["template"]], special_tokens=RECORDED["special_tokens"]
    )
    chat = RECORDED["chats"][case["chat"]]
    options = {k: v for k, v in chat.items() if k not in ("messages", "template_args")}
    options |= chat.get("template_args", {})
    if "error" in case:
        with pytest.raises(TemplateError, match=case["error"].splitlines()[0]):
            template.render(chat["messages"], **options)
    else:
        assert template.render(chat["messages"], **options) == case["text"]


def render(source: str, **options) -> str:
    return ChatTemplate(source).render(USER, **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% for m in messages %}", r"chat_template\.jinja, line 2: syntax error: .*endfor"),
        ("{{ 'a' | nonsense }}", "syntax error: No filter named 'nonsense'"),
        ("\n\n{{ raise_exception('no system role') }}", "line 3, refuses .*: no system role"),
        ("{{ a.b.c }}", "line 1: 'a' is undefined"),
        ("{{ nothing() }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{% include 'x' %}", "TypeError: no loader"),
        ("{{ '' }}", "rendered these messages to an empty prompt"),
        ("{{" + "(" * 5000, "nested too deeply"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
    ],
)
def test_broken_templates(source, message):
    with pytest.raises(TemplateError, match=message) as error:
        render(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).x }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ ('{0.__class__.x}'|attr('format'))('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ strftime_now.__code__.co_code }}",
    ],
)
def test_sandbox_breaches(source):
    with pytest.raises(TemplateError, match="unsafe"):
        render(source)


GROW = "{% set n = namespace(x='aaaa') %}{% for i in range(200) %}{% set n.x = EXPR %}{% endfor %}"
NEST = (
    "{% set n = namespace(x=[1]) %}{% for i in range(200) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set s = 'a' * 9999 %}{% for a in s %}{% for b in s %}{% if 0 %}{% endif %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * 'a' }}",
        "{{ [1] * 10**10 }}",
        "{{ 9**9**9**9**9**9 }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a'.zfill(10**10) }}",
        "{{ '\t'.expandtabs(10**10) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a\n' | indent(10**10) }}",
        "{{ [1] | batch(10**10, 1) | list }}",
        "{{ [1] | slice(10**10) | list }}",
        "{{ [1] | tojson(indent=10**10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:9999999999d}'.format(1) }}",
        "{{ '{:{}d}'.format(1, 9999999999) }}",
        "{{ ('a' * 1000).replace('', 'b' * 1000000) }}",
        "{{ ('a' * 1000) | replace('', 'b' * 1000000) }}",
        "{{ ('b' * 1000000).join('a' * 1000000) }}",
        "{{ range(99999) | map('string') | join('x' * 100000) }}",
        GROW.replace("EXPR", "n.x + n.x"),
        GROW.replace("EXPR", "n.x ~ n.x"),
        GROW.replace("EXPR", "n.x * 2"),
        GROW.replace("EXPR", "'%s%s' % (n.x, n.x)"),
        GROW.replace("EXPR", "'{0}{0}'.format(n.x)"),
        GROW.replace("EXPR", "n.x.replace('a', 'aa')"),
        NEST + "{{ n.x }}",
        NEST + "{{ n.x | string }}",
        NEST + "{{ n.x | tojson }}",
        NEST + "{{ n.x ~ '' }}",
        NEST + "{% set a = n.x %}" + NEST + "{{ a == n.x }}",
        "{% for i in range(90) recursive %}{{ loop(range(90)) if loop.depth < 9 }}{% endfor %}",
    ],
)
def test_no_template_runs_for_long(source):
    start = time.monotonic()
    with pytest.raises(TemplateError, match=r"too much work|Range too big"):
        render(source)
    assert time.monotonic() - start < 20  # about one second; a machine may be busy


def test_a_long_chat_with_tools_is_well_within_the_budget():
    messages = [{"role": "user", "content": "word " * 2000}, {"role": "assistant", "content": "y"}]
    tools = RECORDED["chats"]["tools"]["tools"] * 50
    text = ChatTemplate(RECORDED["templates"]["chatml"]).render(messages * 200, tools=tools)
    assert len(text) > 2_000_000


def test_the_budget_is_new_for_each_rendering():
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}x")
    assert [template.render(USER) for _ in range(15)] == ["x"] * 15


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ("hi", "messages must be a list of dicts .* not a str"),
        ({"role": "user"}, "messages must be a list of dicts .* not a dict"),
        (["hi"], r"messages\[0\] must be a dict .* not a str"),
        ([*USER, {"content": "x"}], r"messages\[1\]\['role'\] must be a string .* not None"),
        ([{"role": 3, "content": "x"}], r"\['role'\] must be a string .* not 3"),
        ([{"role": "user"}], r"messages\[0\]\['content'\] must be a string, .* not None"),
        ([{"role": "user", "content": 3}], r"\['content'\] must be .* not a int"),
        ([{"role": "user", "content": ["x"]}], r"\['content'\] must be .* not a list"),
    ],
)
def test_messages_are_checked(messages, message):
    with pytest.raises(RequestError, match=message):
        ChatTemplate("x").render(messages)


@pytest.mark.parametrize("tools", ["x", {"a": 1}, ["x"], 3])
def test_tools_are_checked(tools):
    with pytest.raises(RequestError, match="tools"):
        render("x", tools=tools)


def test_content_may_be_parts_or_missing_beside_tool_calls():
    template = ChatTemplate("{% for m in messages %}{{ m.content }};{% endfor %}")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert template.render([call, {**call, "content": None}, parts]) == (
        ";None;[{'type': 'text', 'text': 'a'}];"
    )


def test_the_current_date():
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)


def test_any_template_argument_name_is_passed():
    assert render("{{ context }}{{ name }}", context="a", name="b") == "ab"


def test_several_threads():
    template = ChatTemplate("{% for m in messages %}{{ m.content * 2 }}{% endfor %}")
    chats = [[{"role": "user", "content": f"{n} "}] * 50 for n in range(100)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(template.render, chats)) == [f"{n} " * 100 for n in range(100)]


def test_order_of_the_files(tmp_path):
    assert load_chat_template(tmp_path) is None
    config = {"bos_token": {"content": "<s>"}, "chat_template": "config {{ bos_token }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_chat_template(tmp_path).render(USER) == "config <s>"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json {{ bos_token }}"}')
    assert load_chat_template(tmp_path).render(USER) == "json <s>"
    (tmp_path / "chat_template.jinja").write_text("jinja {{ bos_token }}")
    assert load_chat_template(tmp_path).render(USER) == "jinja <s>"


def write_config(folder, chat_template) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))


def test_several_templates(tmp_path):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    write_config(tmp_path, named)
    template = load_chat_template(tmp_path)
    assert (template.render(USER), template.render(USER, tools=[{}])) == ("D", "T")
    assert template.render(USER, tools=[]) == "D"
    write_config(tmp_path, named[:1])
    assert load_chat_template(tmp_path).render(USER, tools=[{}]) == "D"
    write_config(tmp_path, named[1:])
    with pytest.raises(TemplateError, match=r"no template named 'default' \(it has: tool_use\)"):
        load_chat_template(tmp_path).render(USER)


@pytest.mark.parametrize("stored", [3, [], ["x"], [{"name": "default"}], {"a": "b"}])
def test_a_template_of_the_wrong_type(tmp_path, stored):
    write_config(tmp_path, stored)
    with pytest.raises(ModelFormatError, match=r"tokenizer_config\.json: chat_template must be"):
        load_chat_template(tmp_path)


def test_errors_name_the_file(tmp_path):
    write_config(tmp_path, [{"name": "default", "template": "{{"}, {"name": "b", "template": ""}])
    with pytest.raises(TemplateError, match=r"tokenizer_config\.json \(default\), line 1: syntax"):
        load_chat_template(tmp_path).render(USER)


def test_a_generation_block_keeps_its_variables():
    source = "{% generation %}{% set a = 1 %}x{{ a }}{% endgeneration %}{{ a is defined }}"
    assert render(source) == "x1False"  # as transformers renders it
