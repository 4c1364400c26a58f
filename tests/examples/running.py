"""Examples run as people run them: as scripts, with nothing of this library to be imported."""

import importlib
import subprocess
import sys
from pathlib import Path

from mobileclip.export import bundled_samples
from tests.preloaded import preloaded

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
FORBIDDEN = ("torch", "mobileclip", "safetensors.torch")
# Says which of the modules that an example must do without it has imported all the same.
_RUN = """
import runpy, sys
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path.insert(0, {folder!r})
try:
    runpy.run_path(script, run_name="__main__")
finally:
    found = [name for name in {forbidden!r} if name in sys.modules]
    if found:
        sys.exit(f"imported: {{found}}")
"""


def contract_module(monkeypatch):
    """The part that all examples share."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("contract")


def run_example(script, *arguments, forbidden=FORBIDDEN):
    """What an example prints, its errors and its exit status."""
    code = _RUN.format(folder=str(EXAMPLES), forbidden=forbidden)
    command = [sys.executable, "-W", "error", "-c", code, str(EXAMPLES / script), *map(str, arguments)]
    # Not in the checkout, where `import mobileclip` would work.
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLES, timeout=120)


def refused(folder, script, *arguments):
    """What an example ends with and says that is given a mistake, in a forked process: a new one takes a second."""
    done = preloaded().call("tests.preloaded:python", str(EXAMPLES / script), *map(str, arguments), folder=folder)
    return done.status, done.output


def write_images(folder, count=None):
    """The first bundled pictures, or all, as files."""
    samples = bundled_samples()
    paths = [folder / f"{name}.jpg" for name in samples.image_names[:count]]
    for path, data in zip(paths, samples.images[:count], strict=True):
        path.write_bytes(data)
    return paths
