"""A server for one exported page, with the headers that WASM threads need."""

from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError

PORT = 8000
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",  # these three: without them browsers give no shared memory,
    "Cross-Origin-Embedder-Policy": "require-corp",  # and WASM has one thread
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # ask again each time: the folder may have been exported anew
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
"""Said here because the system's own table, which Python reads, is wrong on many machines, and modules need theirs."""


def serve(site: Path, port: int | None = None) -> ThreadingHTTPServer:
    """A server for one folder, bound to the loopback address and not yet running.

    Raises:
        UsageError: the folder holds no page, or the port is taken.
    """
    if missing := [name for name in ("index.html", "rfp.json") if not (site / name).is_file()]:
        raise UsageError(
            f"{site}: holds no page (no {missing[0]}); `rfp export RUN -o {site} --format web` writes one"
            if site.is_dir()
            else f"{site}: no such folder; `rfp export RUN -o {site} --format web` writes one"
        )
    root = site.resolve()

    class Handler(_Handler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(root))

    for wanted in (PORT, 0) if port is None else (port,):
        try:
            return _Server(("127.0.0.1", wanted), Handler)
        except OSError as e:
            error = e
    raise UsageError(f"port {port}: {error.strerror}; try another --port, or 0 for any that is free") from error


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: a closed tab ends a download in the middle."""


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder and no others: no listings, no hidden files, and no link that leads out."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> Any:
        root, path = Path(self.directory), Path(self.translate_path(self.path))
        # A page elsewhere may have a name that was made to lead here.
        if self.headers.get("Host", "").partition(":")[0] not in ("localhost", "127.0.0.1"):
            return self._refuse()
        try:
            path = path / "index.html" if path.is_dir() else path
            inside = path.resolve(strict=True).relative_to(root)
        except (OSError, ValueError, RuntimeError):  # RuntimeError: links that go round
            return self._refuse()
        if not path.is_file() or any(part.startswith(".") for part in inside.parts):
            return self._refuse()
        return super().send_head()

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def guess_type(self, path: Any) -> str:
        return TYPES.get(Path(path).suffix.lower(), "application/octet-stream")

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a browser's own console tells what it could not fetch."""
