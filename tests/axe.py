"""axe-core, as examples/web pins it: what it finds on a page, of any severity."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_WEB = Path(__file__).parents[1] / "examples" / "web"
_NAME = "axe-core"
_OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


@cache
def _script() -> str:
    """Return axe, installed with the lock of examples/web; without a registry, the test is skipped."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine: apt-get install npm")
    package, lock = (json.loads((_WEB / f"{name}.json").read_text()) for name in ("package", "package-lock"))
    wanted, place = {"devDependencies": {_NAME: package["devDependencies"][_NAME]}}, f"node_modules/{_NAME}"
    lock["packages"] = {"": wanted, place: lock["packages"][place]}
    with TemporaryDirectory() as folder:
        for name, told in (("package", wanted), ("package-lock", lock)):
            (Path(folder) / f"{name}.json").write_text(json.dumps(told))
        line = ["npm", "ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode and any(word in done.stderr for word in _OFFLINE):
            pytest.skip("the npm registry cannot be reached")
        assert done.returncode == 0, done.stderr
        return (Path(folder) / place / "axe.min.js").read_text()


def findings(page) -> list[list[str]]:
    """Return what axe finds on a page as it is: the rule, its severity, and the first place."""
    if not page.evaluate("'axe' in window"):
        page.ask("Runtime.evaluate", expression=_script())
    told = "axe.run().then(({ violations }) => violations.map(one => [one.id, one.impact, one.nodes[0].html]))"
    return page.evaluate(told)
