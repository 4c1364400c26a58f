"""Tell griffe the library's own docstring sections, and the constructors that attrs and NamedTuple generate."""

from __future__ import annotations

import griffe
from docstring_titles import with_titles

_DECORATORS = ("attrs.frozen", "attrs.define")
_BASES = ("NamedTuple", "typing.NamedTuple")


class Classes(griffe.Extension):
    """Add missing constructors and section titles after griffe has loaded the package."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Visit every object of the package."""
        _visit(pkg)


def _visit(one: griffe.Object) -> None:
    if one.docstring is not None:
        one.docstring.value = with_titles(one.docstring.value)
    if isinstance(one, griffe.Class) and "__init__" not in one.members and _has_fields(one):
        one.set_member("__init__", _constructor(one))
    for member in list(one.members.values()):
        if not member.is_alias:
            _visit(member)


def _has_fields(one: griffe.Class) -> bool:
    decorated = any(str(decorator.callable_path) in _DECORATORS for decorator in one.decorators)
    return decorated or any(str(base) in _BASES for base in one.bases)


def _constructor(one: griffe.Class) -> griffe.Function:
    """Return the generated constructor, whose arguments are the fields of the class and its base classes."""
    found: dict[str, griffe.Parameter] = {}
    for each in (*reversed(one.mro()), one):
        if not _has_fields(each):
            continue
        keyword_only = any("kw_only=True" in str(decorator.value) for decorator in each.decorators)
        kind = griffe.ParameterKind.keyword_only if keyword_only else griffe.ParameterKind.positional_or_keyword
        for name, field in each.members.items():
            if isinstance(field, griffe.Attribute) and field.annotation is not None and _is_field(field):
                own = name.lstrip("_")
                found.pop(own, None)
                found[own] = griffe.Parameter(own, annotation=field.annotation, kind=kind, default=_default(field))
    own = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    return griffe.Function(
        "__init__", parameters=griffe.Parameters(own, *found.values()), returns="None", parent=one, runtime=True
    )


def _is_field(field: griffe.Attribute) -> bool:
    value = field.value
    left_out = isinstance(value, griffe.ExprCall) and "init=False" in str(value)
    return "property" not in field.labels and "ClassVar" not in str(field.annotation) and not left_out


def _default(field: griffe.Attribute) -> str | griffe.Expr | None:
    """Return the default of a field, or `...` if other fields determine the default."""
    value = field.value
    if _calls(value, "attrs.field"):
        given = {each.name: each.value for each in value.arguments if isinstance(each, griffe.ExprKeyword)}
        value = given.get("default")
        if "factory" in given:
            return f"{given['factory']}()"
    return "..." if _calls(value, "attrs.Factory") else value


def _calls(value: str | griffe.Expr | None, path: str) -> bool:
    return isinstance(value, griffe.ExprCall) and value.function.canonical_path == path
