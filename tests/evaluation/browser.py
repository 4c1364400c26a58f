"""A real browser, driven through its debugging pipe: pages as they look, and what they do while they load."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    # As root, and in containers, there is no sandbox to be had.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
# The browser reads commands from descriptor 3 and answers on 4: `--remote-debugging-pipe`.
LAUNCH = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextmanager
def open_page(path: Path, *, width: int, dark: bool = False, height: int = 900):
    """Yield a loaded page in a window of a given width, in pixels, that prefers light colours or dark ones."""
    assert CHROMIUM is not None, "there is a browser"
    commands, write = os.pipe()
    read, answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        arguments = [str(commands), str(answers), CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *arguments],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        try:
            page = Page(read, write)
            page.load(path, width=width, height=height, dark=dark)
            yield page
        finally:
            process.terminate()
            process.wait(timeout=30)
            os.close(read)
            os.close(write)


class Page:
    """A page, with what was said and asked for while it was loaded.

    Messages are JSON objects that end with a zero byte.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._events = []
        self._count = 0
        self._rest = b""
        self._session = None
        self._address = ""

    def load(self, path: Path, *, width: int, height: int, dark: bool) -> None:
        """Open a file in a tab, and wait until it is loaded."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[theme])
        self._address = path.resolve().as_uri()
        self.ask("Page.navigate", url=self._address)
        while not self._of("Page.loadEventFired"):
            self._events.append(self._receive())

    def ask(self, method, **params):
        """Return the browser's answer to one command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)

    def evaluate(self, expression):
        """Return the value of a JavaScript expression in the page."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for, apart from the page itself and from what it holds."""
        asked = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        return [address for address in asked if address != self._address and not address.startswith("data:")]

    @property
    def complaints(self) -> list[str]:
        """What the browser's console says."""
        said = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for name in said for event in self._of(name)]

    def _of(self, method):
        return [event for event in self._events if event.get("method") == method]

    def _receive(self):
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 16)
            if not more:
                raise RuntimeError("the browser is gone")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
