"""Serves the dialer page and the built client beside it; on loopback, for trying it out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parent
CLIENT = PAGE.parent.parent / "clients" / "js" / "dist"


class Handler(SimpleHTTPRequestHandler):
    """The page's folder, with the client under `client/`."""

    def translate_path(self, path: str) -> str:
        """The file that a path means."""
        inside = super().translate_path(path.removeprefix("/client"))
        if not path.startswith("/client/"):
            return inside
        return str(CLIENT / Path(inside).relative_to(PAGE))

    def end_headers(self) -> None:
        """Nothing is kept by the browser: a change shows at once."""
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


def _token() -> str | None:
    """The token of the stack that runs in this folder, as `make run` leaves it in its home."""
    home = Path(os.environ.get("ASSIGNMENT_WORKERS_HOME") or ".assignment-workers")  # noqa: TID251
    try:
        told = json.loads((home / "stack.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(told["gateway_token"]) if told.get("gateway_token") else None


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="default: 8080")
    port = parser.parse_args().port
    if not (CLIENT / "index.js").is_file():
        sys.exit("serve.py: the client is not built: run `make client` first")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=PAGE))
    except (OSError, OverflowError) as error:
        sys.exit(f"serve.py: port {port} cannot be used: {error}")
    origin = f"http://127.0.0.1:{server.server_port}"
    token = _token()
    print(f"{origin}/#token={token}" if token else origin, flush=True)
    print("The gateway has to let this page in:", flush=True)
    print(f"    ASSIGNMENT_WORKERS_GATEWAY_ORIGINS={origin} make run", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
