"""Jinja for templates written by strangers: they see plain values only, can change none, and come to an end.

The first two Jinja's own sandbox takes care of. The third is added here, since three lines of a template may ask for
10^10 turns of a loop or for a text of a terabyte. What a template does is counted in characters and items:

    budget      for all that it makes, and for each turn of a loop:  `~`, [...], x[1:], filters, calls, output
    one step    that cannot be interrupted is refused beforehand, if it could lead to too much: 'a' * 10**10
    seconds     for whatever takes long and makes nothing

So that nothing escapes, `Counting` puts a filter of ours around every expression that makes a value, and every loop.
The environment is that of transformers otherwise, with the same filters and functions, so that the same text comes out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

BUDGET = 50_000_000  # characters and items, for one rendering: a conversation of a million tokens takes a tenth
TURN, CALL = 10, 250  # what a turn of a loop and a call cost, of the same budget: it is used up within seconds
ONE_STEP = 20_000_000
ITEM = 20  # what an item of a list counts as: it takes as long to look at
LARGEST_NUMBER = 2**64
SECONDS = 10.0

# Filters and methods that make no more than they are given.
LIGHT = frozenset(
    "length count first last default d list items map select selectattr reject rejectattr trim lower upper title "
    "startswith endswith strip lstrip rstrip split rsplit splitlines partition rpartition find rfind get keys "
    "values".split()
)
REMOVED = ("pprint", "urlize", "xmlattr")  # filters that no chat needs, and that can make much of little
WIDE = re.compile(r"%[^a-zA-Z%]*(\*|\d{6})|\{[^}]*(\{|\d{6})")  # a format that asks for a field of any width
VALUES = (str, bytes, int, float, list, tuple, dict)


class EndlessTemplateError(TemplateError):
    """It does not come to an end, or makes far too much."""


class Meter:
    """What one rendering has used up."""

    def __init__(self) -> None:
        self.left = BUDGET
        self.end = time.monotonic() + SECONDS

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise EndlessTemplateError(f"it makes more than {BUDGET:,} characters, or takes as many steps")
        if time.monotonic() > self.end:
            raise EndlessTemplateError(f"it takes longer than {SECONDS:g} s")


class Counted:
    """What a loop goes through; each turn is counted."""

    def __init__(self, items: Iterable[Any], meter: Meter) -> None:
        self.items = items
        self.meter = meter

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            self.meter.spend(TURN)
            yield item

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]  # TypeError for what has no length is what Jinja expects


class Counting(NodeTransformer):
    """Puts the filters `measured` and `counted` around what makes values, and around what loops go through."""

    def measured(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        is_target = getattr(node, "ctx", "load") != "load"
        return node if is_target else around(node, "measured")

    visit_List = visit_Tuple = visit_Dict = visit_Concat = measured

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        return self.measured(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = around(node.iter, "counted")
        return node


def around(node: nodes.Node, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One for each template, which is rendered by one thread at a time."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols])
        self.meter = Meter()
        for name in REMOVED:
            del self.filters[name]
        self.filters["tojson"] = self.to_json
        self.filters = {name: self.guarded(function, name) for name, function in self.filters.items()}
        self.filters["measured"] = self.measured
        self.filters["counted"] = lambda items: Counted(items, self.meter)
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": refuse, "strftime_now": now, "namespace": PlainNamespace}

    def template(self, source: str) -> Template:
        """Compile a template. Raises whatever Jinja or Python raises, TemplateSyntaxError above all."""
        self.meter = Meter()  # constants are computed now
        tree = Counting().visit(self.parse(source))
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def render(self, template: Template, values: dict[str, Any]) -> str:
        self.meter = Meter()
        return template.render(values)

    # Four ways to make a value: an operator, a function or method, a filter, text that is put together.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str) and operator == "%":
            check_format(left)
        if operator == "**" and isinstance(right, int) and right > 64:
            raise EndlessTemplateError(f"it asks for a number to the power of {right:,}")
        if operator in ("%", "*") and not (is_number(left) and is_number(right)):
            check_step(right, [left]) if is_number(left) else check_step(left, [right])
        return self.measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, VALUES):
            name = getattr(method, "__name__", "")
            if name.startswith("format"):
                check_format(owner)
            if name not in LIGHT:
                check_step(owner, [*args, *kwargs.values()])
        __self.meter.spend(CALL)
        return __self.measured(super().call(__context, __obj, *args, **kwargs))

    def guarded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)  # with the marks that tell Jinja what a filter wants to be given
        def filter_(*args: Any, **kwargs: Any) -> Any:
            values = [value for value in [*args, *kwargs.values()] if isinstance(value, VALUES)]
            if name == "format":
                check_format(*values[:1])
            if name == "sum":
                values += values  # of lists: each addition copies all
            if name not in LIGHT and values:
                check_step(values[0], values[1:])
            return self.measured(function(*args, **kwargs))

        return filter_

    def concat(self, pieces: Iterable[str]) -> str:
        return "".join(self.measured(piece) for piece in pieces)

    def measured(self, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise EndlessTemplateError("it computes numbers of more than 64 bits")
        if isinstance(value, VALUES):
            weight(value)
        self.meter.spend(1 + (len(value) if isinstance(value, str | list | tuple | dict) else 0))
        return value

    def to_json(self, value: Any, ensure_ascii: bool = False, indent: Any = None, **settings: Any) -> str:
        """Unlike Jinja's own, this leaves <, > and & as they are. `settings`: separators and sort_keys."""
        form = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, **settings)
        return self.concat(form.iterencode(value))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def weight(value: Any) -> int:
    """How many characters there are in a value, in all its depth, where an item counts as ITEM of them. These may be
    far more than it takes in memory: [x, x], where x is [y, y], and so on."""
    waiting, total = [value], 1 - ITEM
    while waiting:
        each = waiting.pop()
        total += ITEM + (len(each) if isinstance(each, str | bytes) else 0)
        if isinstance(each, dict):
            waiting.extend(each.values())
        if isinstance(each, list | tuple | dict):
            waiting.extend(each)
        if total > ONE_STEP:
            raise EndlessTemplateError(f"it makes a value of more than {ONE_STEP:,} characters")
    return total


def check_step(value: Any, arguments: list[Any]) -> None:
    """Refuse what may lead to too much. No function of Jinja, or of the values, makes more than this product: the
    largest of what it is given times all the rest, where an argument that is a number counts as much as it says."""
    amounts = [abs(each) if isinstance(each, int) else weight(each) for each in arguments]
    *rest, largest = sorted([weight(value), *amounts])
    if largest * max(1, sum(rest)) > ONE_STEP:
        raise EndlessTemplateError(f"in one step it may make more than {ONE_STEP:,} characters")


def check_format(form: Any = "") -> None:
    if isinstance(form, str) and WIDE.search(form):
        raise EndlessTemplateError("it asks for a field of any width")


def refuse(message: str) -> NoReturn:
    """`raise_exception` in templates."""
    raise RefusedError(message)


class RefusedError(TemplateError):
    """The template itself says that it cannot have these messages."""


def now(form: str) -> str:
    """`strftime_now` in templates: today's date, for those that tell it the model."""
    return datetime.now().strftime(form)


class PlainNamespace(Namespace):
    """What `{% set ns.x = 1 %}` writes to. Its text is short, even if it holds itself many times over."""

    def __repr__(self) -> str:
        return "<Namespace>"

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"{name!r} is not for templates to set")
        super().__setitem__(name, value)


class GenerationBlocks(Extension):
    """{% generation %} ... {% endgeneration %} marks what the model has said. That is of use in training only."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)
