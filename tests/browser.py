"""A real browser, driven through its debugging pipe: pages as they look, what they do, and what people do to them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# As root, and in containers, there is no sandbox to be had.
FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-sandbox"),
    *("--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
)
# The browser reads commands from descriptor 3 and answers on 4: `--remote-debugging-pipe`. It reserves far more
# addresses than it uses, so that a limit of them that the tests run under is not for it.
LAUNCH = """
import fcntl, os, resource, sys
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (most, most))
commands, answers = (fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


# Of a page, and of its workers.
DOMAINS = ("Network", "Runtime", "Log")


@contextmanager
def open_page(page: Path | str, *, width: int, dark: bool = False, height: int = 900, flags: tuple[str, ...] = ()):
    """Yield a loaded page in a window of a given width, in pixels, that prefers light colours or dark ones.

    Args:
        page: a file, or an address.
        width: of the window.
        dark: whether dark colours are preferred.
        height: of the window.
        flags: more of the browser's own.
    """
    address = page.resolve().as_uri() if isinstance(page, Path) else page
    assert CHROMIUM is not None, "there is a browser"
    commands, write = os.pipe()
    read, answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        arguments = [str(commands), str(answers), CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        command = [sys.executable, "-c", LAUNCH, *arguments]
        process = subprocess.Popen(command, pass_fds=(commands, answers), **streams)
        os.close(commands)
        os.close(answers)
        try:
            opened = Page(read, write)
            opened.load(address, width=width, height=height, dark=dark)
            yield opened
        finally:
            process.terminate()
            process.wait(timeout=30)
            os.close(read)
            os.close(write)


class Page:
    """A page, with what it and its workers have said and asked for so far.

    Messages are JSON objects that end with a zero byte.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._events, self._count, self._rest, self._address = [], 0, b"", ""
        self._session = self._target = None

    def load(self, address: str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Open an address in a new tab instead of the one before, and wait until it is loaded."""
        before, self._session, self._events = self._target, None, []
        self._target = target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        if before is not None:
            self.ask("Target.closeTarget", targetId=before)
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", *DOMAINS):
            self.ask(f"{domain}.enable")
        # Workers stand still until they are listened to.
        self.ask("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=size["mobile"])
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[theme])
        self._address = address
        self.ask("Page.navigate", url=address)
        while not self._of("Page.loadEventFired"):
            self._notice(self._receive())

    def ask(self, method, **params):
        """Return the browser's answer to one command."""
        asked = self._send(method, params, self._session)
        while True:
            answer = self._receive()
            if answer.get("id") == asked:
                assert "error" not in answer, answer
                return answer["result"]
            self._notice(answer)

    def evaluate(self, expression):
        """Return the value of a JavaScript expression in the page."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression, *, seconds: float = 60):
        """Return the value of a JavaScript expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            text = self.evaluate("document.body.innerText")
            assert time.monotonic() < end, f"{expression} is still {value!r}; {self.complaints}; the page says:\n{text}"
            time.sleep(0.05)
        return value

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Choose files, or a folder, in the file input that a CSS selector finds."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in paths])

    def drop_files(self, selector: str, *paths: Path) -> None:
        """Drop files, or a folder, on the middle of the element that a CSS selector finds."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.evaluate(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box})")
        data = {"items": [], "files": [str(path.resolve()) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.ask("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str, *, code: int, text: str = "") -> None:
        """Press a key: its name and code as in JavaScript, and the text that it types."""
        pressed = {"key": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **pressed)

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

    def _send(self, method, params, session) -> int:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._count

    def _notice(self, message) -> None:
        """Keep an event, and listen to a worker that has come up."""
        self._events.append(message)
        if message.get("method") == "Target.attachedToTarget" and self._session is not None:
            worker = message["params"]["sessionId"]
            for method in (*(f"{domain}.enable" for domain in DOMAINS), "Runtime.runIfWaitingForDebugger"):
                self._send(method, {}, worker)

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
