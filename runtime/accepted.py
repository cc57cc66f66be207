"""What a setting takes, in words, from the annotation of its field."""

from __future__ import annotations

from typing import Any

from msgspec import inspect


def accepted(struct: type, name: str) -> str:
    """`a number from 0 to 1`, `sum or each`, `a list of texts`: of the field `name` of a msgspec Struct."""
    found = inspect.type_info(struct)
    assert isinstance(found, inspect.StructType)
    return in_words(next(field.type for field in found.fields if field.name == name))


def in_words(kind: inspect.Type) -> str:
    """None is left out: it means that nothing was given."""
    match kind:
        case inspect.UnionType():
            return " or ".join(in_words(each) for each in kind.types if not isinstance(each, inspect.NoneType))
        case inspect.IntType():
            return f"a whole number{between(kind.ge, kind.le)}"
        case inspect.FloatType():
            return f"a number{between(kind.ge, kind.le)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "a text"
        case inspect.LiteralType():
            return " or ".join(map(str, kind.values))
        case inspect.VarTupleType():
            return f"a list of {in_words(kind.item_type).removeprefix('a ')}s"
        case inspect.DictType():
            return "an object"
    return str(kind)


def between(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "" if low is None else f" from {low:.12g} up"
    return f" from {low:.12g} to {high:.12g}"


def abridged(value: Any) -> str:
    """A value as it was given, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
