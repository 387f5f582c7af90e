"""What no GPU's compiler takes, found in the source: a kernel that only runs in plain Python is none.

numba compiles a small part of Python for a GPU: numbers, tuples, if and loops, arrays and views of them, the functions
of `math`, and functions that are made of the same. No lists, nothing that needs memory, nobody to catch an exception.
"""

import ast
import math
from types import ModuleType

import numpy as np

from minipage.learn.judge import Wrong

NOT_COMPILED = {
    ast.ListComp: "a list comprehension",
    ast.SetComp: "a set comprehension",
    ast.DictComp: "a dictionary comprehension",
    ast.GeneratorExp: "a generator expression",
    ast.List: "a list",
    ast.Dict: "a dictionary",
    ast.Set: "a set",
    ast.JoinedStr: "a string",
    ast.Try: "try",
    ast.With: "with",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
    ast.Lambda: "a lambda",
    ast.ClassDef: "a class",
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.MatMult: "the product of matrices, @",
}
NOT_BUILT_IN = {
    "list", "dict", "set", "frozenset", "sorted", "reversed", "sum", "map", "filter", "any", "all", "str", "repr",
    "iter", "next", "isinstance", "getattr", "setattr", "vars", "type", "open", "input", "bytes", "bytearray", "eval",
    "exec", "hash", "id",
}  # fmt: skip
NOT_IN_MATH = {"fsum", "prod", "sumprod", "dist", "comb", "perm", "factorial", "isclose", "lcm", "nextafter", "ulp"}


def check_source(impl, kernel):
    """Raise Wrong with the line of the first thing in this kernel, or in a function that it calls, that is no GPU's."""
    tree = ast.parse(impl.path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    seen, left = set(), [kernel]
    while left:
        name = left.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in inside(functions[name]):
            if what := trouble(node, impl.module, functions):
                line = getattr(node, "lineno", functions[name].lineno)
                raise Wrong(
                    f"line {line} has {what}, which no GPU's compiler takes. "
                    "A kernel, and what it calls, has numbers, tuples, loops and if, arrays and parts of them, and the "
                    "functions of math. (The numbers are right.)"
                )
            if isinstance(node, ast.Name):
                left.append(node.id)


def inside(function):
    """All that a function does: not its decorators, defaults and annotations."""
    for statement in function.body:
        for node in ast.walk(statement):
            if not isinstance(node, ast.List) or isinstance(node.ctx, ast.Load):
                yield node


def trouble(node, module, functions):
    if type(node) in NOT_COMPILED:
        return NOT_COMPILED[type(node)]
    known = vars(module)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in known:
        name = node.func.id
        if name in NOT_BUILT_IN:
            return f"{name}(...)"
        if name in ("min", "max") and len(node.args) == 1:
            return f"{name} of a whole array"
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = known.get(node.value.id)
        return unknown(owner, getattr(owner, node.attr, None), ast.unparse(node)) if is_module(owner) else ""
    if isinstance(node, ast.Name) and node.id in known and node.id not in functions:
        thing = known[node.id]
        owner = getattr(thing, "__module__", None) or ""
        if owner.startswith("numpy") and not isinstance(thing, np.ndarray):
            return unknown(np, thing, node.id)
        if any(thing is getattr(math, name, None) for name in NOT_IN_MATH):
            return node.id
        if isinstance(thing, list | dict | set | bytearray):
            return f"{node.id}, a {type(thing).__name__} of Python's"
        if isinstance(thing, type) and owner == module.__name__ and not issubclass(thing, tuple):
            return f"{node.id}, a class"
    return ""


def is_module(thing):
    return isinstance(thing, ModuleType) and not thing.__name__.startswith("numba")


def unknown(owner, thing, name):
    """`name`, unless a kernel may use it."""
    if owner is math:
        return name if name.partition(".")[2] in NOT_IN_MATH else ""
    if owner is np:
        is_number = isinstance(thing, float | int) or (isinstance(thing, type) and issubclass(thing, np.generic))
        return "" if is_number or isinstance(thing, np.ufunc) else f"{name} of NumPy's"
    return name
