"""Bundles the finder's scripts for browsers, with the modules that they share with the page of examples/web."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from examples.quickstart.emoji.sources import NPM_CI, run_npm
from mobileclip.storage import write_text

_ROOT = Path(__file__).parents[3]
SCRIPTS = Path("examples/icons/finder/static")
_WEB = Path("examples/web")
STATIC = Path("mobileclip/collections/web/static")
# From the build tools of examples/web; the finder needs no runtime.
_NEEDED = ("@huggingface/tokenizers", "esbuild", "@esbuild/")


def copy_sources(work: Path) -> Path:
    """Copy the finder's scripts with their imports and packages, and return the folder."""
    for folder in (SCRIPTS, _WEB / "src", STATIC):
        shutil.rmtree(work / folder, ignore_errors=True)
        shutil.copytree(_ROOT / folder, work / folder)
    package, lock = (
        json.loads((_ROOT / _WEB / name).read_text(encoding="utf-8")) for name in ("package.json", "package-lock.json")
    )
    for one in (package, lock["packages"][""]):
        for kind in ("dependencies", "devDependencies"):
            one[kind] = {name: version for name, version in one[kind].items() if name.startswith(_NEEDED)}
    packages = lock["packages"].items()
    kept = {path: about for path, about in packages if path.removeprefix("node_modules/").startswith(_NEEDED)}
    lock["packages"] = {"": lock["packages"][""], **kept}
    installed, wanted = work / "installed.json", json.dumps(lock)
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        write_text(work / "package.json", json.dumps(package))
        write_text(work / "package-lock.json", wanted)
        run_npm(["ci", *NPM_CI, "--prefix", str(work)])
        write_text(installed, wanted)
    return work


def bundle(work: Path, script: str, output: Path, *flags: str) -> None:
    """Bundle one of the finder's scripts with its imports into one file.

    Args:
        work: folder that `copy_sources` returned.
        script: name of the script.
        output: JavaScript file to write.
        flags: further flags for esbuild.
    """
    shared = ("--bundle", "--minify", "--format=esm", "--target=es2022", "--log-level=warning")
    entry = str((work / SCRIPTS / script).resolve())
    run_npm(["exec", "--prefix", str(work), "--", "esbuild", entry, *shared, f"--outfile={output.resolve()}", *flags])
