"""Choose images by an expression on the table, such as `modality in ("T1w", "T2w") and iqs <= 2.5 and slices >= 32`.

A small language with Python's syntax: columns by their names, numbers, texts, True and False, comparisons (also chained),
`in` and `not in` a tuple or list, `and`, `or`, `not`, + - * / %, and the functions below. Nothing else is evaluated.

Missing values never match, as in SQL: a comparison with a missing value is neither true nor false, and neither is its
opposite. `not iqs > 2.5` leaves out images without iqs, too; `iqs <= 2.5 or missing(iqs)` keeps them.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from nnunet_ssl.errors import CorpusError

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
TEXT_FUNCTIONS: dict[str, Callable[[pd.Series, str], pd.Series]] = {
    "startswith": lambda column, text: column.str.startswith(text),
    "endswith": lambda column, text: column.str.endswith(text),
    "contains": lambda column, text: column.str.contains(text, regex=False),
    "matches": lambda column, text: column.map(lambda value: re.search(text, value) is not None, na_action="ignore"),
}
FUNCTIONS = (*TEXT_FUNCTIONS, "lower", "abs", "missing")
EXAMPLE = 'modality in ("T1w", "T2w") and iqs <= 2.5 and slices >= 32'


def select(table: pd.DataFrame, expression: str) -> list[str]:
    """The cases that match, in the table's order; raises CorpusError saying what is wrong with the expression."""
    return table.loc[matching(table, expression), "case"].tolist()


def matching(table: pd.DataFrame, expression: str) -> np.ndarray:
    """Which rows of the table match, as booleans [rows]; raises CorpusError saying what is wrong with the expression."""
    return _Evaluation(table, expression).result()


def check_expression(table: pd.DataFrame, expression: str) -> None:
    """Raise CorpusError if the expression cannot be evaluated on a table with these columns."""
    _Evaluation(table.head(0), expression).result()


def require_syntax(expression: str) -> None:
    """Raise CorpusError if the expression is none, whatever the columns are."""
    _Evaluation(pd.DataFrame(), expression).tree()


class _Evaluation:
    """One expression on one table. A value is a column, a number, a text, a truth value, or a list of literals."""

    def __init__(self, table: pd.DataFrame, expression: str) -> None:
        self.table, self.expression = table, expression

    def tree(self) -> ast.Expression:
        try:
            return ast.parse(self.expression.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self.error(f"cannot be read: {getattr(error, 'msg', error)}") from error

    def result(self) -> np.ndarray:
        tree = self.tree()
        try:
            truth = self.truth(tree.body)
        except RecursionError as error:
            raise self.error("is nested too deeply") from error
        return truth.fillna(False).to_numpy(dtype=bool)

    def error(self, problem: str) -> CorpusError:
        return CorpusError(f"The filter {self.expression!r} {problem}. Example: {EXAMPLE}")

    def truth(self, node: ast.expr) -> pd.Series:
        """A node as column of True, False and missing."""
        value = self.value(node)
        if isinstance(value, bool):
            return pd.Series(value, index=self.table.index, dtype="boolean")
        if isinstance(value, pd.Series) and pd.api.types.is_bool_dtype(value.dtype):
            return value.astype("boolean")
        if isinstance(value, pd.Series) and not value.notna().any():
            return pd.Series(pd.NA, index=self.table.index, dtype="boolean")
        raise self.error(f"needs something that is true or false where it has {ast.unparse(node)!r}; compare it")

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
            return node.value
        if isinstance(node, ast.Name):
            return self.column(node.id)
        if isinstance(node, (ast.Tuple, ast.List)):
            items = [self.value(item) for item in node.elts]
            if any(isinstance(item, (pd.Series, list)) for item in items):
                raise self.error(f"has a list with other things than texts and numbers: {ast.unparse(node)}")
            return items
        if isinstance(node, ast.BoolOp):
            parts = [self.truth(part) for part in node.values]
            combined = parts[0]
            for part in parts[1:]:
                combined = combined & part if isinstance(node.op, ast.And) else combined | part
            return combined
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.truth(node.operand)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            number = self.number(node.operand)
            return -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            left, right = self.number(node.left), self.number(node.right)
            if not isinstance(right, pd.Series) and right == 0 and isinstance(node.op, (ast.Div, ast.Mod)):
                raise self.error(f"divides by zero: {ast.unparse(node)}")
            return ARITHMETIC[type(node.op)](left, right)
        if isinstance(node, ast.Compare):
            return self.comparison(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        raise self.error(f"has {ast.unparse(node)!r}, which filters do not allow")

    def column(self, name: str) -> pd.Series:
        if name in self.table:
            return self.table[name]
        close = difflib.get_close_matches(name, [str(c) for c in self.table.columns], n=3, cutoff=0.5)
        meant = f" Did you mean {' or '.join(close)}?" if close else ""
        quoted = f' A text needs quotes: "{name}".' if not close else ""
        columns = ", ".join(str(c) for c in self.table.columns)
        raise self.error(f"names the column {name}, which there is not.{meant}{quoted} There are: {columns}")

    def number(self, node: ast.expr) -> Any:
        value = self.value(node)
        if self.kind(value) == "number":
            return value.astype("Float64") if isinstance(value, pd.Series) else value
        raise self.error(f"calculates with {ast.unparse(node)!r}, which is no number")

    def comparison(self, node: ast.Compare) -> pd.Series:
        operands = [node.left, *node.comparators]
        result: pd.Series | None = None
        for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
            part = self.compare(op, left, right, node)
            result = part if result is None else result & part
        assert result is not None
        return result

    def compare(self, op: ast.cmpop, left: ast.expr, right: ast.expr, node: ast.Compare) -> pd.Series:
        if type(op) not in (*COMPARISONS, ast.In, ast.NotIn):
            raise self.error(
                f"has {ast.unparse(node)!r}, which filters do not allow; for missing values: missing(column)"
            )
        a, b = self.value(left), self.value(right)
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(a, pd.Series) or not isinstance(b, list):
                raise self.error(
                    f'wants `column in ("a", "b")` where it has {ast.unparse(node)}; for parts of a text: contains()'
                )
            kinds = {self.kind(item) for item in b}
            self.require_same(a, kinds, node)
            inside = a.isin(b).astype("boolean").mask(a.isna())
            return inside if isinstance(op, ast.In) else ~inside
        if isinstance(a, list) or isinstance(b, list):
            raise self.error(f"compares with a list in {ast.unparse(node)}; use `in`")
        self.require_same(a, {self.kind(b)}, node)
        if not isinstance(a, pd.Series) and not isinstance(b, pd.Series):
            a = pd.Series([a] * len(self.table), index=self.table.index)
        missing = (a.isna() if isinstance(a, pd.Series) else False) | (b.isna() if isinstance(b, pd.Series) else False)
        return COMPARISONS[type(op)](a, b).astype("boolean").mask(missing)

    def require_same(self, value: Any, kinds: set[str], node: ast.Compare) -> None:
        own = self.kind(value)
        # A column without any value compares with everything, and matches nothing.
        if "nothing" not in (own, *kinds) and kinds - {own}:
            raise self.error(f"compares {own} with {' and '.join(sorted(kinds))} in {ast.unparse(node)}")

    def kind(self, value: Any) -> str:
        if isinstance(value, pd.Series):
            if pd.api.types.is_bool_dtype(value.dtype):
                return "truth value"
            if pd.api.types.is_numeric_dtype(value.dtype):
                return "number"
            return "text" if value.notna().any() or len(value) == 0 else "nothing"
        if isinstance(value, bool):
            return "truth value"
        return "text" if isinstance(value, str) else "number" if isinstance(value, (int, float)) else "list"

    def call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in FUNCTIONS or node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            raise self.error(f"calls {name}; filters know {', '.join(FUNCTIONS)}")
        expected = 2 if name in TEXT_FUNCTIONS else 1
        if len(node.args) != expected:
            raise self.error(f"calls {name} with {len(node.args)} arguments, expected {expected}")
        first = self.value(node.args[0])
        if name == "abs":
            return abs(self.number(node.args[0]))
        if not isinstance(first, pd.Series):
            raise self.error(f"calls {name} on {ast.unparse(node.args[0])}, expected a column")
        if name == "missing":
            return first.isna()
        if self.kind(first) not in ("text", "nothing"):
            raise self.error(f"calls {name} on {ast.unparse(node.args[0])}, which is no text")
        texts = first.astype("string")
        if name == "lower":
            return texts.str.lower()
        text = self.value(node.args[1])
        if not isinstance(text, str):
            raise self.error(f"calls {name} with {ast.unparse(node.args[1])}, expected a text in quotes")
        try:
            return TEXT_FUNCTIONS[name](texts, text).astype("boolean")
        except re.error as error:
            raise self.error(f"has the pattern {text!r}, which is no regular expression: {error}") from error
