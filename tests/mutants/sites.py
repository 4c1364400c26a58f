"""Where a program can be changed by one token, and how: cosmic-ray's operators, and one for names in quotes."""

from __future__ import annotations

import difflib
from pathlib import Path

import attrs
import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator

# One or two for each token: the likely slips. All of cosmic-ray's would change one `+` in eleven ways, of which ten
# (`>>` between floats) end any program, and a sample of them would say more of the slips than of the tests.
OPERATORS = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Mod_FloorDiv", "Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_GtE", "Gt_LtE")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_Delete_{operator}" for operator in ("USub", "Invert", "Not")),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "RemoveDecorator"),
    *("ZeroIterationForLoop", "ExceptionReplacer"),
)

# Messages, imports, types, formats, and statements of invariants: what they refuse does not happen.
_NOT_THE_PROGRAM = {"raise_stmt", "import_from", "import_name", "tfpdef", "fstring_format_spec", "assert_stmt"}
_STATEMENTS_ABOUT_CALLS = ("strict=True", "kw_only=True")


class NameReplacer(Operator):
    """Changes a name in quotes: a key, a choice, a file's name. What has spaces is for people to read."""

    def mutation_positions(self, node):
        quoted = node.type == "string" and node.value[0] in "\"'" and node.value[0] == node.value[-1]
        if quoted and not any(character.isspace() for character in node.value):
            yield node.start_pos, node.end_pos

    def mutate(self, node, _index):
        # To Python, utf-8_ is utf-8.
        changed = node.value.replace("utf-8", "utf-16")
        node.value = f"{node.value[:-1]}_{node.value[-1]}" if changed == node.value else changed
        return node

    @classmethod
    def examples(cls):
        return (Example('x = "name"', 'x = "name_"'),)


@attrs.frozen(kw_only=True)
class Mutant:
    """A program with one change.

    Args:
        file: below the repository's root.
        function: around the change, with its class; empty at a module's top level.
        line: the changed line without its indentation, or several.
        becomes: what stands in its place.
        number: of the first line.
        source: of the whole changed file.
    """

    file: str
    function: str
    line: str
    becomes: str
    number: int
    source: str = attrs.field(repr=False)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names it, also after other lines have moved."""
        return self.file, self.function, self.line, self.becomes


@attrs.frozen(kw_only=True)
class Place:
    """A token, and what can be put in its stead.

    Args:
        file: below the repository's root.
        function: around the token, with its class.
        source: of the file.
        changes: operators, each with the number of this place among all of its places.
    """

    file: str
    function: str
    source: str = attrs.field(repr=False)
    changes: list[tuple[Operator, int]] = attrs.field(factory=list)

    def mutants(self) -> list[Mutant]:
        """Return the programs with one of the changes, as far as they are programs."""
        sources = (_mutated(self.source, operator, number) for operator, number in self.changes)
        return [_described(self, source) for source in sources if source is not None and _compiles(source)]


def places(root: Path, file: str) -> list[Place]:
    """Return where a file can be changed.

    Args:
        root: of the repository.
        file: below it.
    """
    source = (root / file).read_text(encoding="utf-8")
    nodes = list(ast_nodes(get_ast(source)))
    found: dict[tuple[int, int], Place] = {}
    for operator in (*(get_operator(f"core/{name}")() for name in OPERATORS), NameReplacer()):
        starts = ((start, node) for node in nodes for start, _ in operator.mutation_positions(node))
        for number, (start, node) in enumerate(starts):
            if _is_program(node):
                place = found.setdefault(start, Place(file=file, function=_function(node), source=source))
                place.changes.append((operator, number))
    return [place for _, place in sorted(found.items())]


def _mutated(source: str, operator: Operator, number: int) -> str | None:
    try:
        return mutate_code(source, operator, number)
    except AttributeError:  # ExceptionReplacer knows no dotted names in a tuple
        return None


def _described(place: Place, mutated: str) -> Mutant:
    before, after = place.source.splitlines(), mutated.splitlines()
    codes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = [code for code in codes if code[0] != "equal"]
    first, last = changed[0], changed[-1]
    line = " ".join(text.strip() for text in before[first[1] : last[2]]).strip()
    becomes = " ".join(text.strip() for text in after[first[3] : last[4]]).strip()
    number = first[1] + 1
    return Mutant(file=place.file, function=place.function, line=line, becomes=becomes, number=number, source=mutated)


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _function(node: parso.tree.NodeOrLeaf) -> str:
    names = []
    inner = node
    while (inner := inner.parent) is not None:
        if inner.type in ("classdef", "funcdef"):
            names.append(inner.name.value)
    return ".".join(reversed(names))


def _is_program(node: parso.tree.NodeOrLeaf) -> bool:
    """Whether a node is computed with: not a type, an import, a docstring, an invariant, or the text of an error."""
    if node.type == "assert_stmt" or (node.type == "if_stmt" and _code(node.children[1]) == "TYPE_CHECKING"):
        return False
    inner = node
    while (outer := inner.parent) is not None:
        if outer.type in _NOT_THE_PROGRAM or _is_said_of_types(inner, outer) or _is_list_of_names(outer):
            return False
        if inner.type == "string" and outer.type in ("simple_stmt", "file_input"):  # a docstring
            return False
        inner = outer
    return True


def _is_list_of_names(outer: parso.tree.NodeOrLeaf) -> bool:
    return outer.type == "expr_stmt" and _code(outer.children[0]) == "__all__"


def _is_said_of_types(inner: parso.tree.NodeOrLeaf, outer: parso.tree.NodeOrLeaf) -> bool:
    rules = {
        "argument": lambda: _code(outer) in _STATEMENTS_ABOUT_CALLS,
        "annassign": lambda: inner is outer.children[1],
        "funcdef": lambda: inner is outer.annotation,
        "parameters": lambda: inner.type == "operator",  # the star before what is given by name
        "if_stmt": lambda: _code(outer.children[1]) == "TYPE_CHECKING",
        "decorated": lambda: _code(inner) == "@overload",
        "trailer": lambda: _code(outer.get_previous_sibling()) in ("Literal", "TypeVar", "cast"),
    }
    return outer.type in rules and rules[outer.type]()


def _code(node: parso.tree.NodeOrLeaf) -> str:
    return node.get_code(include_prefix=False).strip()
