"""The distribution: its name and version, and what to install for what is missing. No other place knows them.

It is `open-mobileclip` on PyPI; what is imported, and the command, are called `mobileclip`. What is heavy, or needed by
some alone, is an extra of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DISTRIBUTION = "open-mobileclip"
VERSION = "0.1.0"
UPDATE = f"pip install -U {DISTRIBUTION}"


def install(*extras: str) -> str:
    """Return the command that installs extras.

    >>> install("onnx", "int8")
    "pip install 'open-mobileclip[onnx,int8]'"
    """
    return f"pip install '{DISTRIBUTION}[{','.join(extras)}]'"


@contextmanager
def needed(what: str, *extras: str) -> Iterator[None]:
    """Import here what extras bring: whoever lacks it is told what needs it, and the command that installs it.

    Args:
        what: who needs it, as a sentence begins: "the target 'onnx'".
        extras: that bring it.

    Raises:
        ImportError: where an import fails. It is a `ModuleNotFoundError` where the package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(f"{what} needs {package}: {install(*extras)}", name=error.name) from error
    except ImportError as error:
        raise ImportError(f"{what} cannot be used ({error}): {install(*extras)}", name=error.name) from error
