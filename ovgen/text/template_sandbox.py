"""The Jinja environment in which chat templates run: they come with a model, from anybody.

On top of jinja2's immutable sandbox (no way to Python's inside, no changes to the arguments) a
template has a budget of work, because a few characters of it may ask for years or terabytes. Each
loop iteration, call, filter and concatenation pays for itself and for the text it handles.

Imports jinja2: load this module only when a template is to run.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from inspect import signature
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# Units of work for one rendering, a second or two; a long chat with tools takes some thousands.
WORK_LIMIT = 1_000_000
# Characters or items handled for one unit of work.
ITEMS_PER_UNIT = 100
MAX_INT_BITS = 4096

# A width of five digits or more, or one taken from the arguments, in either format language.
_WIDE_FORMAT = re.compile(r"[%:.<>^=][-+ #0]*[0-9]{5,}|%[-+ #0-9.]*\*|:[^{}]*\{")


class TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


class WorkLimitError(jinja2.TemplateRuntimeError):
    """The template asks for too much work."""


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks the model's turns for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class Counted:
    """An iterable that pays for each item; sized if the original is, as `loop.length` wants."""

    def __init__(self, environment: ChatEnvironment, items: Any) -> None:
        self._environment = environment
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._environment.spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Options, filters and globals as in transformers' `apply_chat_template`.

    It may render in several threads at once: a budget belongs to a thread.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, LoopControlExtension],
            finalize=self.weighed,  # of each {{ value }}
            optimized=False,  # would compute constants while compiling, outside of any budget
        )
        self._budget = threading.local()
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.filters["tojson"] = _to_json
        self.filters = {name: self._paid(name, f) for name, f in self.filters.items()}

    def start_budget(self) -> None:
        """Give the current thread the budget for one rendering."""
        self._budget.left = WORK_LIMIT

    def spend(self, items: int = 0) -> None:
        """Pay for one operation on so many characters or items."""
        self._budget.left -= 1 + items // ITEMS_PER_UNIT
        if self._budget.left < 0:
            raise WorkLimitError("too much work: endless or deeply nested loops, or huge texts")

    def weigh(self, value: Any) -> None:
        """Pay for `value` with all that is in it."""
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for item in value:
                self.weigh(item)
        self.spend(_length(value))

    def counted(self, items: Any) -> Counted:
        """What a `for` loop runs over instead of `items`."""
        return Counted(self, items)

    def weighed(self, value: Any) -> Any:
        """`value`, paid for with all that is in it."""
        self.weigh(value)
        return value

    def concat_values(self, *values: Any) -> str:
        """The operator `~`; `call` has weighed the values."""
        return "".join(map(str, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that make large things out of small ones."""
        if operator == "%" and isinstance(left, str):
            _check_format(left)
            self.weigh(right)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            if (bits * right if operator == "**" else bits + right.bit_length()) > MAX_INT_BITS:
                raise WorkLimitError("too much work: a number is too long")
        elif operator == "*":
            sizes = [v if isinstance(v, int) else _length(v) for v in (left, right)]
            self.spend(max(sizes[0] * sizes[1], 0))
        elif operator == "+":
            self.spend(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template. As in the base, all keyword names are left to the template."""
        self = __self
        for value in (*args, *kwargs.values()):
            self.weigh(value)
        if isinstance(__obj, LoopContext):  # a recursive loop goes over new items
            args = tuple(map(self.counted, args))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and (cost := _METHOD_COST.get(__obj.__name__)) is not None:
            args = tuple(list(self.counted(v)) if isinstance(v, Iterator) else v for v in args)
            self.spend(cost(owner, *args))
        result = super().call(__context, __obj, *args, **kwargs)
        self.spend(_length(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The methods `format` and `format_map` of a string."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return template

    def _paid(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter `name`, with its work paid for before it is done."""
        cost = _FILTER_COST.get(name)
        parameters = signature(function) if cost is not None else None

        @wraps(function)
        def paid(*args: Any, **kwargs: Any) -> Any:
            args = tuple(self.counted(v) if isinstance(v, Iterator) else v for v in args)
            if cost is not None:  # needs to know the length
                args = tuple(list(v) if isinstance(v, Counted) else v for v in args)
            for value in (*args, *kwargs.values()):
                self.weigh(value)
            if cost is not None and parameters is not None:
                self.spend(cost(parameters.bind(*args, **kwargs).arguments))
            result = function(*args, **kwargs)
            self.spend(_length(result))
            return result

        return paid


class _Instrument(NodeTransformer):
    """Routes what has no hook in jinja2 (loops, comparisons, `~`) through the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call_environment("counted", [node.iter], node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _call_environment("weighed", [node.expr], node.lineno)
        for operand in node.ops:
            operand.expr = _call_environment("weighed", [operand.expr], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call_environment("concat_values", node.nodes, node.lineno)


def _call_environment(method: str, args: list[Any], lineno: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(method, lineno=lineno)
    return nodes.Call(function, args, [], None, None, lineno=lineno)


def _length(value: Any) -> int:
    # Counted and LoopContext are Sized, too, but asking them may consume an iterator.
    return len(value) if isinstance(value, (str, list, tuple, dict, range)) else 0


def _width(value: Any) -> int:
    """Of an argument that says how wide to make something: a number or the filling itself."""
    return max(value, 0) if isinstance(value, int) else _length(value)


def _lines(value: Any) -> int:
    return str(value).count("\n") + 1


def _check_format(text: str) -> int:
    if _WIDE_FORMAT.search(text):
        raise WorkLimitError("too much work: a format's width is too large, or not in the format")
    return 0


# How much larger than its arguments a result can be, of all filters and string methods where it
# can. By the parameter names of the filters, in characters or items.
_FILTER_COST: Mapping[str, Callable[[dict[str, Any]], int]] = {
    "batch": lambda a: _width(a["linecount"]),
    "center": lambda a: _width(a.get("width")),
    "format": lambda a: _check_format(str(a["value"])),
    "indent": lambda a: _lines(a["s"]) * _width(a.get("width")),
    "join": lambda a: _length(a["value"]) * _length(a.get("d")),
    "replace": lambda a: str(a["s"]).count(str(a["old"])) * len(str(a["new"])),
    "slice": lambda a: _width(a["slices"]),
    "tojson": lambda a: len(str(a["x"])) * _width(a.get("indent")),
    "wordwrap": lambda a: _length(a["s"]) * _length(a.get("wrapstring")),
}
_METHOD_COST: Mapping[str, Callable[..., int]] = {
    "center": lambda text, width, *_: _width(width),
    "expandtabs": lambda text, size=8, *_: text.count("\t") * _width(size),
    "join": lambda text, items: len(text) * _length(items),
    "ljust": lambda text, width, *_: _width(width),
    "replace": lambda text, old, new, *_: text.count(old) * len(new),
    "rjust": lambda text, width, *_: _width(width),
    "zfill": lambda text, width, *_: _width(width),
}


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateRefusal(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Iterable[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter without HTML escapes."""
    pair: Any = None if separators is None else tuple(separators)
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys
    )
