"""`rfp preview`: one folder, on this computer only, with the headers that threads need."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rfp.cli.main import app
from rfp.cli.site_server import PORT, serve
from typer.testing import CliRunner


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "ort").mkdir(parents=True)
    for name in ("index.html", "rfp.json", "page.js", "style.css", "velocity.onnx", "ort/a.mjs", "ort/a.wasm", ".key"):
        (folder / name).write_text(f"this is {name}")
    (tmp_path / "secret").write_text("outside")
    return folder


@pytest.fixture
def port(site: Path) -> Iterator[int]:
    server = serve(site, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def get(port: int, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/page.js?1", "page.js", "text/javascript; charset=utf-8"),
        ("/style.css", "style.css", "text/css; charset=utf-8"),
        ("/rfp.json", "rfp.json", "application/json"),
        ("/velocity.onnx?e61b", "velocity.onnx", "application/octet-stream"),
        ("/ort/a.mjs", "ort/a.mjs", "text/javascript; charset=utf-8"),
        ("/ort/a.wasm", "ort/a.wasm", "application/wasm"),
    ],
)
def test_files_come_with_their_types_and_the_headers_that_threads_need(port, path, name, kind):
    status, headers, body = get(port, path)
    assert (status, body, headers["Content-Type"]) == (200, f"this is {name}".encode(), kind)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert get(port, path, "HEAD")[::2] == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/ort/../../secret",
        "//secret",
        "/..\\secret",
        "/ort/",
        "/ort",
        "/.key",
        "/%00",
        "/link",
        "/linked/secret",
        "/none",
        "/index.html/",
    ],
)
def test_nothing_else_is_served(site, port, path):
    (site / "link").symlink_to(site.parent / "secret")
    (site / "linked").symlink_to(site.parent, target_is_directory=True)
    status, _, body = get(port, path)
    assert status == 404 and b"outside" not in body and b"a.wasm" not in body


def test_only_this_computer_is_answered(site):
    server = serve(site, 0)
    assert server.server_address[0] == "127.0.0.1"
    server.server_close()


def test_a_taken_port_is_an_error_where_it_was_asked_for_and_another_where_not(site):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["preview", str(site), "--port", str(number)])
        assert result.exit_code == 2 and f"port {number}" in result.output and "--port" in result.output
    with socket.socket() as taken:
        with suppress(OSError):  # something else has it already
            taken.bind(("127.0.0.1", PORT))
            taken.listen()
        server = serve(site)
        assert server.server_port != PORT
        server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends a Unix signal")
def test_it_tells_its_address_and_ends_with_ctrl_c(site):
    # A background job is born with SIGINT ignored, and CI may run as one: take it up again as at a keyboard.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}; from rfp.cli.main import app; app(['preview', {str(site)!r}, '--port', '0'])"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = re.search(r"http://localhost:(\d+)/", process.stdout.readline())
        assert get(int(address[1]), "/")[0] == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors


def test_a_folder_without_a_page_is_an_error_that_says_how_to_make_one(tmp_path):
    (tmp_path / "rfp.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "none"):
        result = CliRunner().invoke(app, ["preview", str(folder)])
        assert result.exit_code == 2 and "--format web" in result.output


def test_a_page_elsewhere_whose_name_leads_here_is_refused(port):
    for host, status in (("evil.example", 404), ("evil.example:80", 404), ("localhost:1", 200), ("127.0.0.1", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/", headers={"Host": host})
        assert connection.getresponse().status == status, host
        connection.close()


@pytest.mark.parametrize("path", ["/loop", "/" + "a" * 300, "/" + 3000 * "a/"])
def test_links_in_a_circle_and_names_too_long_are_not_there_and_no_traceback(site, port, path, capfd):
    (site / "loop").symlink_to("loop")
    assert get(port, path)[0] in (404, 414)
    assert "Traceback" not in capfd.readouterr().err
