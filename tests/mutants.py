"""Small changes of a module's source, one at a time: the mutants that `tests.mutation` runs the tests against."""

import ast
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or,
    ast.Or: ast.And, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.USub: ast.UAdd,
}  # fmt: skip
METHODS = {
    "mean": "sum", "sum": "mean", "square": "abs", "abs": "square", "sqrt": "square", "min": "max", "max": "min",
    "amax": "amin", "amin": "amax", "argmax": "argmin", "argmin": "argmax", "relu": "elu", "softplus": "relu",
    "any": "all", "all": "any", "mse_loss": "l1_loss", "log": "exp", "exp": "log", "cumsum": "cumprod",
    "maximum": "minimum", "median": "max", "norm": "sum", "softmax": "log_softmax",
}  # fmt: skip
DROPPED = {"detach", "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max"}  # becomes clone(): the same value
Change = tuple[int, str, Callable[[], None]]  # line, what changes, and the change itself


def changes(tree: ast.Module) -> Iterator[Change]:
    """Every change; called, it alters the tree in place. Annotations, docstrings and messages are left alone."""
    for node in _reached(tree):
        line = getattr(node, "lineno", 0)
        for what, change in [*_operators(node), *_values(node), *_flow(node)]:
            yield line, what, change


def _reached(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_text(child):
                yield from _reached(child)


def _is_text(node: ast.AST) -> bool:
    """A docstring, or a string that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _operators(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp | ast.UnaryOp) and type(node.op) in OPERATORS:
        other = OPERATORS[type(node.op)]
        yield f"{type(node.op).__name__} to {other.__name__}", lambda: setattr(node, "op", other())
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            new = OPERATORS[type(op)]
            yield f"{type(op).__name__} to {new.__name__}", partial(_put, node.ops, i, new())


def _values(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    if isinstance(node, ast.Constant) and node.value is not None and node.value is not Ellipsis:
        old = node.value
        new = not old if isinstance(old, bool) else old + "x" if isinstance(old, str) else old + 1  # type: ignore[operator]
        yield f"{old!r} to {new!r}", lambda: setattr(node, "value", new)
    if isinstance(node, ast.Attribute) and node.attr in METHODS:
        yield f"{node.attr} to {METHODS[node.attr]}", lambda: setattr(node, "attr", METHODS[node.attr])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
        clone = ast.Call(ast.Attribute(node.func.value, "clone", ast.Load()), [], [])
        yield f"no {node.func.attr}", lambda: node.__dict__.update(vars(clone))


def _flow(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "condition negated", lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    for field in ("body", "orelse"):
        statements = getattr(node, field, None)
        if not isinstance(statements, list):
            continue
        for i, statement in enumerate(statements):
            if isinstance(statement, ast.Expr | ast.AugAssign | ast.Raise) and not _is_text(statement):
                what = f"line {statement.lineno} left out: {ast.unparse(statement)[:60]}"
                yield what, partial(_put, statements, i, ast.Pass())


def _put(things: list[Any], i: int, thing: Any) -> None:
    things[i] = thing
