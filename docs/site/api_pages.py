"""Read the library's public modules and names from the source, without imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
# Public modules without `__all__`. Their public names are those without a leading underscore that they define, or
# import as `import X as X`.
WHOLE_MODULES = (
    "mobileclip.inference.embedding",
    "mobileclip.inference.catalogue",
    "mobileclip.inference.encoding",
    "mobileclip.evaluation.clip_benchmark",
    "mobileclip.extras",
    "mobileclip.inputs",
    "mobileclip.registry",
    "mobileclip.serialization",
    "mobileclip.storage",
)


@attrs.frozen(kw_only=True)
class PublicName:
    """A name that a public module exports.

    Args:
        name: the exported name.
        source: path of the definition, such as `mobileclip.blocks.mixing.RepMixer`, or of the module.
        summary: first line of the docstring, or empty.
        kind: `class`, `function`, `value` or `module`.
    """

    name: str
    source: str
    summary: str
    kind: str


@attrs.frozen(kw_only=True)
class Subpackage:
    """A public module.

    Args:
        module: dotted name.
        summary: first line of the docstring.
        names: exported names, in the order of `__all__`.
    """

    module: str
    summary: str
    names: tuple[PublicName, ...]


@cache
def public_subpackages() -> tuple[Subpackage, ...]:
    """Return modules with `__all__`, modules that these export, and `WHOLE_MODULES`, sorted by name."""
    modules = [_dotted(path) for path in (ROOT / "mobileclip").rglob("*.py")]
    subpackages = [_subpackage(module) for module in modules if module in WHOLE_MODULES or _all_of(module) is not None]
    known = {subpackage.module for subpackage in subpackages}
    given = {one.source for subpackage in subpackages for one in subpackage.names if one.kind == "module"}
    return tuple(sorted([*subpackages, *map(_subpackage, given - known)], key=lambda subpackage: subpackage.module))


@cache
def homes() -> dict[str, str]:
    """Return the public path under which to document each definition, by the definition's path.

    Of the modules that export a definition, the function selects the innermost one that contains the definition; if
    none does, the first one. An example is `mobileclip.blocks.RepMixer`.
    """
    givers: dict[str, list[str]] = {}
    for subpackage in public_subpackages():
        for one in subpackage.names:
            givers.setdefault(one.source, []).append(f"{subpackage.module}.{one.name}")
    return {source: max(given, key=lambda path: _closeness(path, source)) for source, given in givers.items()}


def api_pages() -> dict[str, str]:
    """Return Markdown pages by path below `docs/`, with a line `::: NAME` for every name documented there."""
    subpackages = public_subpackages()
    pages = {"api/index.md": _overview(subpackages)}
    return pages | {page_of(subpackage): _page(subpackage) for subpackage in subpackages}


def page_of(subpackage: Subpackage) -> str:
    """Return the path of a subpackage's page."""
    return f"api/{subpackage.module}.md"


def _closeness(path: str, source: str) -> int:
    subpackage = path.rpartition(".")[0]
    return len(subpackage) if f"{source}.".startswith(f"{subpackage}.") else 0


def _overview(subpackages: tuple[Subpackage, ...]) -> str:
    rows = "\n".join(
        f"| [`{subpackage.module}`]({subpackage.module}.md) | {_cell(subpackage.summary)} |"
        for subpackage in subpackages
    )
    text = "Public modules. Import a name from its module."
    return f"# API\n\n{text}\n\n| module | content |\n|---|---|\n{rows}\n"


def _page(subpackage: Subpackage) -> str:
    described, rows = [], []
    for one in subpackage.names:
        path = f"{subpackage.module}.{one.name}"
        if one.kind == "module":
            rows.append(f"| [`{one.name}`]({one.source}.md) | {_cell(one.summary)} |")
            continue
        home = homes()[one.source]
        rows.append(f"| [`{one.name}`][{home}] | {_cell(one.summary)} |")
        if home == path:
            described.append(f"::: {path}\n")
    table = "\n".join(["| name | description |", "|---|---|", *rows])
    options = ("members", "show_root_heading", "show_root_toc_entry")
    own = "\n".join([f"::: {subpackage.module}", "    options:", *(f"      {option}: false" for option in options)])
    return "\n".join([f"# {subpackage.module}\n", own, "", table, "", *described])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _subpackage(module: str) -> Subpackage:
    tree = _tree(module)
    return Subpackage(
        module=module,
        summary=_first_line(ast.get_docstring(tree)),
        names=tuple(_resolved(module, name) for name in _public_names(module)),
    )


def _public_names(module: str) -> tuple[str, ...]:
    named = _all_of(module)
    if named is not None:
        return named
    statements = (statement for statement in _tree(module).body if not _is_type_variable(statement))
    names = (name for statement in statements for name in (*_defined(statement), *_given_on(statement)))
    return tuple(name for name in names if not name.startswith("_"))


def _resolved(module: str, name: str) -> PublicName:
    """Return the definition of a name in a module, with its docstring's first line."""
    body = [*_stub(module), *(one for statement in _tree(module).body for one in _seen_by_types(statement))]
    for index, statement in reversed(list(enumerate(body))):  # only the last overload has the docstring
        if name in _defined(statement):
            kind, text = _described(statement, body[index + 1] if index + 1 < len(body) else None)
            return PublicName(name=name, source=f"{module}.{name}", summary=_first_line(text), kind=kind)
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.module != module:
            source = f"{module}.{statement.module}" if statement.level else statement.module
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return attrs.evolve(_resolved(source, alias.name), name=name)
    inside = f"{module}.{name}"
    if _path(inside) is not None:
        text = ast.get_docstring(_tree(inside))
        return PublicName(name=name, source=inside, summary=_first_line(text), kind="module")
    raise ValueError(
        f"{module} exports {name!r}, but neither defines it nor imports it from mobileclip; correct the exports"
    )


def _seen_by_types(statement: ast.stmt) -> list[ast.stmt]:
    """Return a statement, or the statements in an `if TYPE_CHECKING:` block, which import lazily loaded names."""
    if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
        return statement.body
    return [statement]


def _described(statement: ast.stmt, following: ast.stmt | None) -> tuple[str, str | None]:
    if isinstance(statement, ast.ClassDef):
        return "class", ast.get_docstring(statement)
    if isinstance(statement, ast.FunctionDef):
        return "function", ast.get_docstring(statement)
    value = following.value if isinstance(following, ast.Expr) else None
    return "value", value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _defined(statement: ast.stmt) -> tuple[str, ...]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return (statement.name,)
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        return (statement.target.id,)
    if isinstance(statement, ast.Assign):
        return tuple(target.id for target in statement.targets if isinstance(target, ast.Name))
    return ()


def _given_on(statement: ast.stmt) -> tuple[str, ...]:
    """Return the names that a statement re-exports (`import X as X`)."""
    aliases = statement.names if isinstance(statement, ast.ImportFrom) else []
    return tuple(alias.name for alias in aliases if alias.asname == alias.name)


def _is_type_variable(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.value).startswith("TypeVar(")


def _all_of(module: str) -> tuple[str, ...] | None:
    if "__all__" not in _text(module):  # most modules have no `__all__`, and parsing is slow
        return None
    for statement in _tree(module).body:
        if "__all__" in _defined(statement):
            assert isinstance(statement, ast.Assign)
            inside = list(ast.walk(statement.value))
            # Such an `__all__` is the names of the stub without a few.
            if any(isinstance(part, ast.Name) and part.id == "_names" for part in inside):
                stub = {one.name for given in _stub(module) if isinstance(given, ast.ImportFrom) for one in given.names}
                return tuple(sorted(stub - {part.value for part in inside if isinstance(part, ast.Constant)}))
            return tuple(ast.literal_eval(statement.value))
    return None


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_text(module))


@cache
def _text(module: str) -> str:
    path = _path(module)
    if path is None:
        raise ValueError(f"the library has no module {module}")
    return path.read_text(encoding="utf-8")


@cache
def _stub(module: str) -> list[ast.stmt]:
    """Return the statements of a package's stub, which imports the lazily loaded names."""
    path = ROOT.joinpath(*module.split("."), "__init__.pyi")
    return ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
