"""The picture of the package, from the import contracts, the imports and the first lines of the subpackages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mobileclip"
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# A statement, which in a docstring's example has `>>>` before it.
_IMPORT = re.compile(r"^[ \t]*(?:from|import) mobileclip(?:\.(\w+)| import (.+))", re.MULTILINE)
# Rooms from this one on down are used by all others: they are drawn without lines.
FOUNDATION = "serialization"


def contract_layers(room: str) -> list[str]:
    """Return the layers within a room that import-linter holds, the highest first; none without a contract.

    Args:
        room: its name within the package, with dots; the package itself where it is empty.
    """
    for contract in PROJECT.split("[[tool.importlinter.contracts]]")[1:]:
        layers = re.search(r"\nlayers = \[(.*?)\n\]", contract, re.DOTALL)
        container = re.search(r'\ncontainers = \["mobileclip\.([\w.]+)"\]', contract)
        if layers and (container[1] if container else "") == room:
            return re.findall(r'"(.+?)"', layers[1])
    return []


def floors(room: str = "") -> list[list[str]]:
    """Return the names on each floor within a room, the lowest floor first; see `contract_layers`."""
    layers = reversed(contract_layers(room))
    return [[name.removeprefix("mobileclip.") for name in re.findall(r"[\w.]+", layer)] for layer in layers]


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".").replace("|", "\\|")


def imports_between(rooms: list[str]) -> set[tuple[str, str]]:
    """Return which room's files import from which other, as pairs of importer and imported."""
    found = set()
    for room in rooms:
        files = (PACKAGE / room).rglob("*.py*") if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]
        for path in files:
            if path.suffix in (".py", ".pyi"):
                found |= {(room, one) for one in _imported(path) if one in rooms and one != room}
    return found


def _imported(path: Path) -> Iterator[str]:
    """Yield the rooms that a file imports from, each as often as it does."""
    for room, names in _IMPORT.findall(path.read_text(encoding="utf-8")):
        yield from [room] if room else re.findall(r"\w+", names)


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the edges that no longer way replaces; there are no circles."""
    below: dict[str, set[str]] = {}
    for one, other in edges:
        below.setdefault(one, set()).add(other)

    def reached(one: str) -> set[str]:
        return {one}.union(*map(reached, below.get(one, ())))

    return {
        (one, other) for one, other in edges if not any(other in reached(way) for way in below[one] if way != other)
    }


@attrs.frozen
class _Box:
    """Where a room is drawn."""

    x: float
    y: float
    width: float
    height: float = 34

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


_WIDTH, _STEP, _TOP = 860, 62, 20
_STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #123; }
  .box { fill: #e0f2f1; stroke: #00796b; }
  .base { fill: #eceff1; stroke: #607d8b; }
  .floor { font-size: 11px; fill: #607d8b; }
  path { fill: none; stroke: #00796b; stroke-opacity: 0.55; }
"""


def picture() -> str:
    """Return the rooms by floors, with the imports that follow from no others, as SVG."""
    levels = floors()
    lowest = next(number for number, names in enumerate(levels) if FOUNDATION in names)
    upper = levels[:lowest:-1]
    boxes = {name: box for row, names in enumerate(upper) for name, box in _boxes(names, row)}
    base = _Box(60, _TOP + len(upper) * _STEP, _WIDTH - 80, 20 + 22 * (lowest + 1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {base.y + base.height + 20:.0f}" role="img">',
        "<title>Folders of mobileclip by floors, and what each imports</title>",
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        *(_line(boxes[one], boxes[other]) for one, other in sorted(reduced(imports_between([*boxes])))),
    ]
    for row, names in enumerate(upper):
        parts.append(f'<text class="floor" x="20" y="{_TOP + row * _STEP + 22}">{len(levels) - row}</text>')
        parts += [_drawn(name, boxes[name]) for name in names]
    parts.append(f'<rect class="base" x="{base.x}" y="{base.y}" width="{base.width}" height="{base.height}" rx="5"/>')
    for row, number in enumerate(range(lowest, -1, -1)):
        y = base.y + 26 + 22 * row
        parts.append(f'<text class="floor" x="20" y="{y}">{number + 1}</text>')
        parts.append(f'<text x="{base.x + 16}" y="{y}">{escape(", ".join(levels[number]))}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _boxes(names: list[str], row: int) -> Iterator[tuple[str, _Box]]:
    share = (_WIDTH - 80) / len(names)
    width = min(130.0, share - 16)
    # One alone stands beside the middle, so that lines to lower floors are seen.
    aside = (-1) ** row * 0.12 * _WIDTH if len(names) == 1 else 0
    for index, name in enumerate(names):
        yield name, _Box(round(60 + share * (index + 0.5) - width / 2 + aside, 1), _TOP + row * _STEP, width)


def _drawn(name: str, box: _Box) -> str:
    about = escape(_first_line(PACKAGE / name / "__init__.py"))
    return (
        f'<g><title>{about}</title><rect class="box" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" '
        f'rx="5"/><text x="{box.middle:.1f}" y="{box.y + 22}" text-anchor="middle">{name}</text></g>'
    )


def _line(one: _Box, other: _Box) -> str:
    start, end = one.y + one.height, other.y
    bend = (end - start) / 2
    return (
        f'<path d="M{one.middle:.1f} {start} C{one.middle:.1f} {start + bend:.0f} {other.middle:.1f} {end - bend:.0f} '
        f'{other.middle:.1f} {end}"/>'
    )
