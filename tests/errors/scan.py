"""Every error of the package that says something, as the code writes it.

Found are all calls of an exception's class, whether the error is raised where it is made, returned or kept. A message
is followed to where its wording is: into variables of the function, constants, functions that return a text, both sides
of a condition, and, where a function takes the wording from those who call it, to these.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, product

import attrs

from tests.errors.source import Call, Package, assigned, given, last, parameters
from tests.errors.template import Hole, Part, Template

_MOST_WAYS = 24  # in which a message can be put together
_DEEPEST = 4  # steps to where wording is
_SAY_SECOND = frozenset({"HTTPException", "ImageError"})  # what stands first is a status or a reason

Parts = tuple[Part, ...]


@attrs.frozen
class _Parameter(Hole):
    """A hole that whoever calls the function fills."""


@attrs.frozen(order=True)
class Found:
    """An error that the package raises: where, its class, and its wording."""

    room: str
    kind: str
    message: str


class Scan:
    """What a package's errors say."""

    def __init__(self, package: Package) -> None:
        self._package = package

    def errors(self) -> list[Found]:
        """Return all errors that have wording of their own."""
        found = set()
        for module in self._package.modules:
            for call in module.calls:
                kind = self._kind(call.node, is_raised=id(call.node) in module.raised)
                for parts in self._messages(call, kind) if kind else ():
                    template = Template.of(parts)
                    if template.letters:
                        found.add(Found(module.room, kind, str(template)))
        return sorted(found)

    def _kind(self, node: ast.Call, *, is_raised: bool) -> str:
        """Return the name of an exception's class, of two with a bar between; empty for what is no exception."""
        if isinstance(node.func, ast.IfExp):
            kinds = [last(node.func.body), last(node.func.orelse)]
            return " | ".join(sorted(kinds)) if all(map(self._is_exception, kinds)) else ""
        name = last(node.func)
        if self._is_exception(name) or ast.unparse(node.func) == "zlib.error":
            return name
        is_some = is_raised and (
            name == "error" or (isinstance(node.func, ast.Call) and last(node.func.func) == "type")
        )
        return "Exception" if is_some else ""

    def _is_exception(self, name: str) -> bool:
        if name in self._package.classes:
            return any(self._is_exception(last(base)) for base in self._package.classes[name].bases)
        builtin = getattr(builtins, name, None)
        if isinstance(builtin, type):
            return issubclass(builtin, BaseException)
        return name.endswith(("Error", "Exception", "UnsupportedOperation"))

    def _messages(self, call: Call, kind: str) -> list[Parts]:
        """Return the ways in which an error's message can be put together."""
        arguments = call.node.args
        if not arguments or any(isinstance(one, ast.Starred) for one in arguments):
            return []
        if kind == "BadSampleError" and len(arguments) > 1:
            ways = self._joined([arguments[0], ": ", arguments[1]], call, _DEEPEST)
        else:
            says_second = len(arguments) > 1 and (kind in _SAY_SECOND or _is_system(kind))
            ways = self._ways(arguments[says_second], call, _DEEPEST)
        return [told for way in ways for told in self._told_by_callers(way, call, _DEEPEST)]

    def _told_by_callers(self, way: Parts, call: Call, deep: int) -> list[Parts]:
        """Return a message with the wording that callers of the function hand in; as it is for those with values."""
        asked = {part.text for part in way if isinstance(part, _Parameter)}
        function = call.function
        if not asked or function is None or not deep:
            return [way]
        told: list[Parts] = []
        for caller in self._package.callers(function, call.module):
            handed = given(function, caller.node)
            filled = {name: self._ways(handed[name], caller, deep - 1) for name in asked & handed.keys()}
            filled = {name: ways for name, ways in filled.items() if _are_wording(ways)}
            ways = _filled(way, filled) if filled else [way]
            told += [one for way in ways for one in self._told_by_callers(way, caller, deep - 1)] if filled else ways
        return told or [way]

    def _ways(self, node: ast.expr, call: Call, deep: int) -> list[Parts]:
        """Return the ways in which a text can be put together; one hole where it is a value."""
        ways: list[Parts] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            ways = [(node.value,)]
        elif isinstance(node, ast.JoinedStr):
            ways = self._joined(node.values, call, deep)
        elif isinstance(node, ast.FormattedValue):
            ways = self._of_hole(node, call, deep)
        elif isinstance(node, ast.IfExp):
            ways = [*self._ways(node.body, call, deep), *self._ways(node.orelse, call, deep)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            ways = self._joined([node.left, node.right], call, deep)
        elif isinstance(node, ast.Name) and deep:
            ways = self._of_name(node, call, deep)
        elif isinstance(node, ast.Call) and deep:
            is_join = isinstance(node.func, ast.Attribute) and node.func.attr == "join"
            ways = self._of_join(node, call, deep) if is_join else self._of_call(node, call, deep)
        return ways or [(_hole(node),)]

    def _joined(self, nodes: Sequence[ast.expr | str], call: Call, deep: int) -> list[Parts]:
        return _products([[(node,)] if isinstance(node, str) else self._ways(node, call, deep) for node in nodes])

    def _of_hole(self, node: ast.FormattedValue, call: Call, deep: int) -> list[Parts]:
        """Return the wording that a hole holds in any case; nothing where it holds a value."""
        is_plain = node.format_spec is None and node.conversion == -1 and isinstance(node.value, ast.Name | ast.Call)
        ways = self._ways(node.value, call, deep - 1) if is_plain and deep else []
        is_wording = len(ways) == 1 and (Template.of(ways[0]).letters or isinstance(ways[0][0], _Parameter))
        return ways if is_wording else []

    def _of_name(self, node: ast.Name, call: Call, deep: int) -> list[Parts]:
        function = call.function
        if function is not None and (texts := assigned(function).get(node.id)):
            ways = [way for text in texts if text is not None for way in self._ways(text, call, deep - 1)]
            return ways[:_MOST_WAYS] if None not in texts else []
        if function is not None and node.id in parameters(function):
            return [(_Parameter(node.id),)]
        module, text = self._package.text(node.id, call.module) or (call.module, None)
        if not isinstance(text, ast.Constant | ast.JoinedStr | ast.BinOp):
            return []
        ways = self._ways(text, Call(module, (), call.node), deep - 1)
        return ways if any(Template.of(way).letters for way in ways) else []

    def _of_call(self, node: ast.Call, call: Call, deep: int) -> list[Parts]:
        """Return what a function of the package returns if it is wording."""
        is_own = isinstance(node.func, ast.Name) or ast.unparse(node.func).startswith("self.")
        module, function = self._package.function(last(node.func), call.module) or (call.module, None)
        if function is None or not is_own:
            return []
        returned = [one.value for one in ast.walk(function) if isinstance(one, ast.Return) and one.value is not None]
        inside = Call(module, (function,), node)
        ways = [way for value in returned for way in self._ways(value, inside, deep - 1)][:_MOST_WAYS]
        if not _are_wording(ways):
            return []
        handed = given(function, node)
        asked = {part.text for way in ways for part in way if isinstance(part, _Parameter)}
        filled = {name: self._ways(handed[name], call, deep - 1) for name in asked & handed.keys()}
        return [told for way in ways for told in _filled(way, filled)]

    def _of_join(self, node: ast.Call, call: Call, deep: int) -> list[Parts]:
        """Return a list of texts that is written out, joined."""
        between = node.func.value if isinstance(node.func, ast.Attribute) else None
        listed = node.args[0] if len(node.args) == 1 else None
        if not isinstance(between, ast.Constant) or not isinstance(listed, ast.List | ast.Tuple):
            return []
        texts: list[ast.expr | str] = []
        for one in listed.elts:
            texts += [between, one.value if isinstance(one, ast.Starred) else one]
        return self._joined(texts[1:], call, deep)


def _are_wording(ways: Iterable[Parts]) -> bool:
    """Return whether texts are wording, that is several words, and no values."""
    return any(" " in literal.strip() for way in ways for literal in Template.of(way).literals)


def _filled(way: Parts, filled: Mapping[str, list[Parts]]) -> list[Parts]:
    """Return a message with what its parameters are."""
    choices: list[list[Parts]] = []
    for part in way:
        own: list[Parts] = [(Hole(part.text) if isinstance(part, _Parameter) else part,)]
        choices.append(filled.get(part.text, own) if isinstance(part, _Parameter) else own)
    return _products(choices)


def _products(choices: Sequence[list[Parts]]) -> list[Parts]:
    products = islice(product(*choices), _MOST_WAYS)
    return list(dict.fromkeys(tuple(one for parts in chosen for one in parts) for chosen in products))


def _is_system(kind: str) -> bool:
    builtin = getattr(builtins, kind, None)
    return isinstance(builtin, type) and issubclass(builtin, OSError)


def _hole(node: ast.expr) -> Hole:
    """Return a hole as it is written; the same for every version of Python."""
    if not isinstance(node, ast.FormattedValue):
        return Hole(_written(node))
    conversion = "" if node.conversion == -1 else f"!{chr(node.conversion)}"
    written = _written(node.format_spec)[2:-1] if node.format_spec is not None else ""
    return Hole(f"{_written(node.value)}{conversion}{written and f':{written}'}")


def _written(node: ast.expr) -> str:
    return re.sub(r"\bfor \(([^()]*)\) in\b", r"for \1 in", ast.unparse(node))  # 3.10 writes brackets
