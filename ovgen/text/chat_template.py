"""A model's chat template: messages in, the prompt text that the model was trained on out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ovgen.errors import ModelFormatError, RequestError, TemplateError
from ovgen.text.tokenizer_config import (
    CONFIG_NAME,
    read_json_object,
    read_text,
    read_tokenizer_config,
)

if TYPE_CHECKING:
    from jinja2 import Template

    from ovgen.text.template_sandbox import ChatEnvironment

TEMPLATE_NAME = "chat_template.jinja"
TEMPLATE_JSON_NAME = "chat_template.json"

# Characters of one rendered chat; far more than any model's context holds.
MAX_OUTPUT = 32_000_000


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a model folder, None when it has none.

    Looks at chat_template.jinja, then chat_template.json, then tokenizer_config.json. Reads only:
    jinja2 is imported, and the template compiled, when first rendered.
    ModelFormatError for a broken file.
    """
    config = read_tokenizer_config(folder)
    source = read_text(folder / TEMPLATE_NAME)
    if source is not None:
        return ChatTemplate(source, TEMPLATE_NAME, config.special_tokens)
    stored = read_json_object(folder / TEMPLATE_JSON_NAME).get("chat_template")
    origin = TEMPLATE_JSON_NAME
    if stored is None:
        stored, origin = config.chat_template, CONFIG_NAME
    if stored is None:
        return None
    return ChatTemplate(_named_sources(stored, folder / origin), origin, config.special_tokens)


class ChatTemplate:
    """Renders chats. `source` is the template, or several by name: then "tool_use", where present,
    serves chats with tools, and "default" all others. `origin` names it in errors.

    May be used from several threads.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        origin: str = TEMPLATE_NAME,
        special_tokens: Mapping[str, Any] | None = None,
    ) -> None:
        self._sources = {"default": source} if isinstance(source, str) else dict(source)
        self._origin = origin
        self._special_tokens = dict(special_tokens or {})
        self._lock = Lock()
        self._environment: ChatEnvironment | None = None
        self._compiled: dict[str, Template] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_args: Any,
    ) -> str:
        """The prompt for `messages`; `template_args` are visible in the template by their names.

        RequestError for messages of the wrong form, TemplateError when the template is broken,
        unsafe or refuses the chat. The special tokens are already in the text: encode it with
        `add_special_tokens=False`.
        """
        variables = {
            **self._special_tokens,
            "documents": None,
            **template_args,
            "messages": _checked_messages(messages),
            "tools": _checked_tools(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        name = self._choose(bool(tools))
        try:
            text = self._run(name, variables)
        except (MemoryError, Exception) as exc:
            raise self._error(exc, name) from exc
        if not text:
            raise TemplateError(f"{self._label(name)} rendered these messages to an empty prompt")
        return text

    def _choose(self, with_tools: bool) -> str:
        name = "tool_use" if with_tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            known = ", ".join(sorted(self._sources)) or "none"
            raise TemplateError(
                f"chat template {self._origin} has no template named 'default' (it has: {known})"
            )
        return name

    def prepare(self) -> None:
        """Compile the template for chats without tools now, so that the first one need not wait.

        A template that cannot be compiled says so when it is rendered.
        """
        with suppress(Exception):
            self._compile(self._choose(with_tools=False))

    def _compile(self, name: str) -> tuple[ChatEnvironment, Template]:
        from ovgen.text.template_sandbox import ChatEnvironment

        with self._lock:
            if self._environment is None:
                self._environment = ChatEnvironment()
            if name not in self._compiled:
                self._compiled[name] = self._environment.from_string(self._sources[name])
            return self._environment, self._compiled[name]

    def _run(self, name: str, variables: dict[str, Any]) -> str:
        environment, template = self._compile(name)
        environment.start_budget()
        pieces: list[str] = []
        length = 0
        for piece in template.generate(variables):
            length += len(piece)
            if length > MAX_OUTPUT:
                from ovgen.text.template_sandbox import WorkLimitError

                raise WorkLimitError(f"its output is longer than {MAX_OUTPUT} characters")
            pieces.append(piece)
        return "".join(pieces)

    def _error(self, exc: BaseException, name: str) -> TemplateError:
        """The one line for whatever went wrong while a template was compiled or run."""
        import jinja2
        from jinja2.exceptions import SecurityError

        from ovgen.text.template_sandbox import TemplateRefusal

        reason = " ".join(str(exc).split()) or type(exc).__name__
        line = exc.lineno if isinstance(exc, jinja2.TemplateSyntaxError) else _line(exc)
        where = self._label(name) + ("" if line is None else f", line {line}")
        if isinstance(exc, TemplateRefusal):
            return TemplateError(f"{where}, refuses these messages: {reason}")
        if isinstance(exc, SecurityError):
            return TemplateError(f"{where}, tried something unsafe: {reason}")
        if isinstance(exc, RecursionError):
            reason = "it is nested too deeply, or calls itself without end"
        elif isinstance(exc, jinja2.TemplateSyntaxError):
            reason = f"syntax error: {reason}"
        elif not isinstance(exc, jinja2.TemplateError):
            reason = f"{type(exc).__name__}: {reason}"
        return TemplateError(f"{where}: {reason}")

    def _label(self, name: str) -> str:
        part = "" if len(self._sources) == 1 else f" ({name})"
        return f"chat template {self._origin}{part}"


def _line(exc: BaseException) -> int | None:
    """The line of the template that raised; jinja2 puts its own lines into the traceback."""
    line = None
    traceback: TracebackType | None = exc.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _named_sources(stored: Any, path: Path) -> str | dict[str, str]:
    if isinstance(stored, str):
        return stored
    if isinstance(stored, list) and stored:
        items = [item for item in stored if isinstance(item, dict)]
        sources = {item.get("name"): item.get("template") for item in items}
        if len(items) == len(stored) and all(isinstance(v, str) for v in sources.values()):
            return {str(name): str(source) for name, source in sources.items()}
    raise ModelFormatError(
        f'{path}: chat_template must be a string or a list of {{"name", "template"}} objects, '
        f"not {type(stored).__name__}"
    )


def _checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(
            f"messages must be a list of dicts with role and content, not {_kind(messages)}"
        )
    if not messages:
        raise RequestError("messages must hold at least one message, the list is empty")
    return [_checked_message(message, index) for index, message in enumerate(messages)]


def _checked_message(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(
            f"messages[{index}] must be a dict with role and content, not {_kind(message)}"
        )
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(
            f"messages[{index}]['role'] must be a string such as 'user', 'assistant' or 'system', "
            f"not {role!r}"
        )
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return dict(message)
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        return {**message, "content": [dict(part) for part in content]}
    raise RequestError(
        f"messages[{index}]['content'] must be a string, a list of dicts, or None in a message "
        f"with tool_calls, not {_kind(content)}"
    )


def _checked_tools(tools: Any) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise RequestError(f"tools must be a list of dicts (JSON schemas), not {_kind(tools)}")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RequestError(f"tools[{index}] must be a dict (JSON schema), not {_kind(tool)}")
    return [dict(tool) for tool in tools]


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
