"""No text is read or written in whatever encoding the machine has, which need not be UTF-8."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("mobileclip", "recipes", "benchmarks", "examples")
# Functions of this library, which know one encoding.
OWN = {"storage.write_text", "write_text"}
TEXTS = {"read_text", "write_text", "TextIOWrapper"}
OPENING = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}
TEXT_MODES = {mode + plus + text for mode in "rwax" for plus in ("", "+") for text in ("", "t")}


def without_encoding(source: str) -> Iterator[int]:
    """Yield the lines of calls that leave the encoding to the machine."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and leaves_encoding(node):
            yield node.lineno


def leaves_encoding(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    is_program = any(getattr(given.get(key), "value", None) is True for key in ("text", "universal_newlines"))
    if "encoding" in given or not (is_program or name in TEXTS | OPENING) or ast.unparse(call.func) in OWN:
        return False
    if is_program or name in TEXTS:
        return True
    values = [value.value for value in (*call.args[:2], given.get("mode")) if isinstance(value, ast.Constant)]
    modes = [value for value in values if isinstance(value, str) and set(value) <= set("rwaxbt+")]
    if modes:
        return modes[-1] in TEXT_MODES
    # `open(path)` and `path.open()` are texts; a method with arguments of its own, as `Image.open`, is another one.
    return ast.unparse(call.func) == "open" or (name == "open" and not call.args and not given)


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open('xb')", False),
        ("path.read_text()", True),
        ("Path(a).write_text(b)", True),
        ("Path(a).write_text(b, encoding='utf-8')", False),
        ("storage.write_text(a, b)", False),
        ("Image.open(stream)", False),
        ("gzip.open(path, 'rt')", True),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("os.fdopen(number, mode='w')", True),
        ("subprocess.run(command, text=True)", True),
        ("io.TextIOWrapper(stream)", True),
    ],
)
def test_what_leaves_the_encoding_to_the_machine_is_found(code, is_found):
    assert list(without_encoding(code)) == [1] * is_found


def test_every_text_has_an_encoding():
    files = [path for place in PLACES for path in (ROOT / place).rglob("*.py")]
    assert len(files) > 300
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found
