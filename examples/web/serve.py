"""Serves the page with the two headers that browsers require for several threads in WebAssembly.

    python examples/web/serve.py            # http://127.0.0.1:8000

Any other static server works too; without the two headers, the page uses one thread.
"""

from __future__ import annotations

import argparse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DIST = Path(__file__).parent / "dist"
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class Handler(SimpleHTTPRequestHandler):
    """A file handler that adds the two headers, and makes browsers revalidate cached files."""

    def end_headers(self) -> None:
        """Add the headers to a response."""
        for name, value in {**ISOLATION, "Cache-Control": "no-cache"}.items():
            self.send_header(name, value)
        super().end_headers()


def main() -> None:
    """Serve the page until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="port; 0 selects a free port")
    parser.add_argument("--bind", default="127.0.0.1", help="0.0.0.0 admits other devices, without their camera")
    arguments = parser.parse_args()
    if not (DIST / "index.html").is_file():
        parser.error(f"{DIST} holds no page; build it with: npm ci && npm run build")
    server = ThreadingHTTPServer((arguments.bind, arguments.port), partial(Handler, directory=str(DIST)))
    print(f"http://{arguments.bind}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
