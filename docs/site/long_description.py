"""The README as a package registry shows it, where no relative link leads anywhere, and the project's URLs.

`python docs/site/long_description.py` prints it, and fails where no release may be made.
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
# Forms of links that are not made absolute: none may be relative.
_RELATIVE = re.compile(
    r"""(?:href|src)\s*=\s*["']?(?!["']|https?://)|^ {0,3}\[[^\]]+\]:\s+(?!https?://)|\]\(\s*<?(?!https?://)"""
)
_CLONE = re.compile(r"pip install '\.\[(?P<extras>[\w,-]+)\]' *# in a clone of this repository; ")


def distribution() -> dict[str, Any]:
    """Return what `mobileclip/extras.py` says; it alone is run, since the library would need PyTorch."""
    return runpy.run_path(str(ROOT / "mobileclip" / "extras.py"))


def long_description(text: str | None = None, said: dict[str, Any] | None = None) -> str:
    """Return a README whose links to files lead to the version's files in the public repository.

    Without an address, files are named without links. A registered distribution is installed by its name.

    Args:
        text: Markdown; `README.md` if left out.
        said: see `distribution`.

    Raises:
        ValueError: if a relative link is left, in HTML or as a reference.
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
    """Return the project's URLs; those of the repository where its address is known.

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
    """Refuse a release whose pages would say what is not so.

    Args:
        said: see `distribution`.

    Raises:
        ValueError: if the repository has no address, or the distribution counts as not registered.
    """
    if not re.fullmatch(r"https://[^\s/]+(?:/[^\s/]+)+", said["REPOSITORY"]):
        raise ValueError(
            f"REPOSITORY in mobileclip/extras.py is {said['REPOSITORY']!r}; expected the public repository's URL, such "
            "as https://github.com/OWNER/NAME, without a slash at its end"
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
        raise ValueError(f"README.md has a relative link that is not made absolute; write it as [text](path): {line}")
    return line


if __name__ == "__main__":
    try:
        require_release(distribution())
        print(long_description())  # noqa: T201
    except ValueError as error:
        sys.exit(f"error: {error}")
