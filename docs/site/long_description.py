"""The README for a package registry, where relative links do not work, and the project's URLs.

`python docs/site/long_description.py` prints this README, or fails if a release is not allowed.
"""

from __future__ import annotations

import posixpath
import re
import runpy
import sys
from typing import Any

from repository_pages import LINK, ROOT, outside_code

PAPERS = {
    "MobileCLIP": "https://arxiv.org/abs/2311.17049",
    "MobileCLIP2": "https://arxiv.org/abs/2508.20691",
}
_LINK_OR_IMAGE = re.compile(f"(?P<image>!?){LINK.pattern}")
# Forms of relative links that `long_description` cannot make absolute.
_RELATIVE = re.compile(
    r"""(?:href|src)\s*=\s*["']?(?!["']|https?://)|^ {0,3}\[[^\]]+\]:\s+(?!https?://)|\]\(\s*<?(?!https?://)"""
)
_CLONE = re.compile(r"pip install '\.\[(?P<extras>[\w,-]+)\]' *# in a clone of this repository; ")


def distribution() -> dict[str, Any]:
    """Return the variables of `mobileclip/extras.py`, without importing the library, which needs PyTorch."""
    return runpy.run_path(str(ROOT / "mobileclip" / "extras.py"))


def long_description(text: str | None = None, said: dict[str, Any] | None = None) -> str:
    """Return a README whose links to files point to this version's files in the public repository.

    If the repository has no URL, file names replace the links. If the distribution is registered, the README installs
    the distribution by name.

    Args:
        text: Markdown; None for `README.md`.
        said: see `distribution`.

    Raises:
        ValueError: if a relative link remains, in HTML or as a reference.
    """
    said = distribution() if said is None else said
    if text is None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
    base = f"{said['REPOSITORY']}/{{}}/v{said['VERSION']}" if said["REPOSITORY"] else ""
    text = outside_code(text, lambda line: _LINK_OR_IMAGE.sub(lambda found: _absolute(found, base), line))
    outside_code(text, _checked)
    if said["IS_REGISTERED"]:
        text = _CLONE.sub(lambda found: f"{said['install_library'](*found['extras'].split(','))}  # ", text)
    return text


def urls(said: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the project's URLs, including the repository's if its URL is known.

    Args:
        said: see `distribution`.
    """
    said = distribution() if said is None else said
    address = said["REPOSITORY"]
    if not address:
        return PAPERS
    return {
        "Homepage": address,
        "Documentation": f"{address}/blob/v{said['VERSION']}/docs/using.md",
        "Changelog": f"{address}/blob/v{said['VERSION']}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    } | PAPERS


def require_release(said: dict[str, Any]) -> None:
    """Refuse a release whose pages would contain false statements.

    Args:
        said: see `distribution`.

    Raises:
        ValueError: if the repository's URL is missing or invalid, or the distribution is not marked as registered.
    """
    if not re.fullmatch(r"https://[^\s/]+(?:/[^\s/]+)+", said["REPOSITORY"]):
        raise ValueError(
            f"REPOSITORY in mobileclip/extras.py is {said['REPOSITORY']!r}; expected the public repository's URL, such "
            "as https://github.com/OWNER/NAME, without a slash at the end"
        )
    if not said["IS_REGISTERED"]:
        raise ValueError("IS_REGISTERED in mobileclip/extras.py is False; set it to True before a release")


def _absolute(found: re.Match[str], base: str) -> str:
    if not base:
        return "" if found["image"] else found["text"][1:-1]
    path = posixpath.normpath(found["target"])
    kind = "raw" if found["image"] else "tree" if (ROOT / path).is_dir() else "blob"
    return f"{found['image']}{found['text']}({base.format(kind)}/{path}{found['anchor'] or ''})"


def _checked(line: str) -> str:
    if _RELATIVE.search(line):
        raise ValueError(f"README.md has an unsupported relative link; write the link as [text](path): {line}")
    return line


if __name__ == "__main__":
    try:
        require_release(distribution())
        print(long_description())  # noqa: T201
    except ValueError as error:
        sys.exit(f"error: {error}")
