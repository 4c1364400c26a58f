"""The package's name, version and repository, and the `pip install` command for a missing extra.

Extras are groups of optional dependencies. The module and the command are both named `mobileclip`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

DISTRIBUTION = "open-mobileclip"
IS_REGISTERED = False
"""Whether PyPI has the package. If not, install hints name the dependencies of an extra, since anybody could register
the name on PyPI. Update this line and the pages for a release."""
REPOSITORY = ""
"""The URL of the public repository, such as `https://github.com/OWNER/NAME`; empty until the repository is public. The
build makes the README's relative links absolute with this URL. A release fails while the URL is empty."""
_CLONE = "in a clone of mobileclip's repository"
UPDATE = f"pip install -U {DISTRIBUTION}" if IS_REGISTERED else f"git pull && pip install . {_CLONE}"
VERSION = "0.1.0"

_MARKER_OF_EXTRA = re.compile(r"""(?:^| and )extra == ['"]([^'"]+)['"]$""")


def install(*extras: str) -> str:
    """Return the shell command that installs extras.

    >>> install("hub", "heif")
    "pip install 'huggingface-hub>=1.0' 'pillow-heif>=1.1'"
    """
    packages = () if IS_REGISTERED else _packages(extras)
    return " ".join(["pip install", *(f"'{one}'" for one in packages)]) if packages else install_library(*extras)


def install_command(*extras: str) -> str:
    """Return the command that installs extras, in backticks, for error messages.

    >>> install_command("hub")
    "`pip install 'huggingface-hub>=1.0'`"
    """
    command, clone, _ = install(*extras).partition(f" {_CLONE}")
    return f"`{command}`{clone}"


def install_library(*extras: str) -> str:
    """Return the command that installs the library itself with extras.

    >>> install_library("hub")
    "pip install '.[hub]' in a clone of mobileclip's repository"
    """
    named = f"[{','.join(extras)}]" if extras else ""
    if IS_REGISTERED:
        return f"pip install '{DISTRIBUTION}{named}'"
    return f"pip install '.{named}' {_CLONE}"


def _packages(extras: tuple[str, ...]) -> tuple[str, ...]:
    """Return the requirements of extras from the installed distribution's metadata; empty if unavailable."""
    try:
        stated = metadata.requires(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:  # not installed, only on the path
        return ()
    found: dict[str, list[str]] = {extra: [] for extra in extras}
    for requirement in stated:
        package, _, marker = (part.strip() for part in requirement.partition(";"))
        extra = _MARKER_OF_EXTRA.search(marker)
        if extra and extra[1] in found:
            others = marker[: extra.start()].replace("'", '"')
            found[extra[1]].append(f"{package}; {others}" if others else package)
    return tuple(dict.fromkeys(one for extra in extras for one in found[extra])) if all(found.values()) else ()


@contextmanager
def needed(what: str, *extras: str) -> Iterator[None]:
    """Wrap imports of optional packages so that the error names the feature and the install command.

    Args:
        what: beginning of the message: the feature that needs the packages, such as "the target 'onnx'".
        extras: extras that install the packages.

    Raises:
        ImportError: if an import fails; a `ModuleNotFoundError` if the package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(f"{what} needs {package}: {install_command(*extras)}", name=error.name) from error
    except ImportError as error:
        raise ImportError(f"{what} cannot be used ({error}): {install_command(*extras)}", name=error.name) from error
