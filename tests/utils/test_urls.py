"""Images from a server, which runs in a thread of the test."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ovml.cli.main import main
from ovml.utils import urls
from ovml.utils.errors import UserError
from ovml.utils.images import load_image


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["User-Agent"]))
        code, headers, body = self.server.answers.get(self.path, (404, {}, b""))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(picture, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.handle_error = lambda *_: None  # of connections that a test breaks
    server.asked = []
    server.answers = {
        "/a.png": (200, {}, picture.read_bytes()),
        "/%E6%BC%A2%20a.png?x=%20": (200, {}, picture.read_bytes()),
        "/moved": (302, {"Location": "/a.png"}, b""),
        "/round": (302, {"Location": "/round"}, b""),
        "/file": (302, {"Location": f"file://{picture}"}, b""),
        "/ftp": (302, {"Location": "ftp://127.0.0.1/a.png"}, b""),
        "/data": (302, {"Location": "data:,a"}, b""),
        "/text": (200, {}, b"no image"),
        "/short": (200, {"Content-Length": "9999"}, picture.read_bytes()),
        "/large": (200, {}, bytes(3 * 2**20)),
        "/error": (500, {}, b""),
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/a.png", "/moved", "/漢 a.png?x=%20"])
def test_an_allowed_url_is_downloaded(server, picture, path):
    image = load_image(server.url + path, allow_urls=True)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(load_image(picture)))
    assert all(agent.startswith("ovml/") for _, agent in server.asked)


def test_tag_downloads_where_it_is_allowed_and_goes_on_after_an_error(server, picture, tiny, capsys):
    command = ["tag", f"{server.url}/a.png", f"{server.url}/none.png", str(picture), "--model", tiny, "--labels", "cat"]
    assert main([*command, "--format", "tsv", "--allow-urls"]) == 0
    done = capsys.readouterr()
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == [f"{server.url}/a.png", str(picture)]
    assert rows[0][1:] == rows[1][1:]
    assert f"{server.url}/none.png: cannot be downloaded (HTTP 404 Not Found); check the address" in done.err
    server.asked.clear()
    assert main(command) == 2
    assert "a URL is downloaded only with allow_urls (--allow-urls)" in capsys.readouterr().err
    assert not server.asked


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_nothing_is_asked_for_where_urls_are_not_allowed(server, scheme):
    url = server.url.replace("http", scheme) + "/a.png"
    with pytest.raises(UserError, match="a URL is downloaded only with allow_urls") as info:
        load_image(url)
    assert str(info.value).startswith(f"{url}: ")
    assert not server.asked


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.png", "HTTP 404 Not Found"),
        ("/error", "HTTP 500"),
        ("/round", "HTTP 302"),
        ("/file", "HTTP 302"),
        ("/ftp", "unknown url type: ftp"),
        ("/data", "HTTP 302"),
        ("/text", "not an image that Pillow can read"),
        ("/short", "the connection ended .* bytes too early"),
        ("/large", "larger than 1 MB"),
    ],
)
def test_what_is_wrong_with_a_url_is_one_line(server, path, message, monkeypatch):
    monkeypatch.setattr(urls, "MOST_BYTES", 2**20)
    with pytest.raises(UserError, match=message) as info:
        load_image(server.url + path, allow_urls=True)
    assert str(info.value).startswith(f"{server.url}{path}: ")
    assert str(info.value).count(server.url) == 1
    assert len(str(info.value).splitlines()) == 1


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1/a", "http://127.0.0.1:port/", "http://a\nb/", "http://u:p@127.0.0.1/"]
)
def test_addresses_that_are_none_are_one_line(url):
    with pytest.raises(UserError, match="cannot be downloaded") as info:
        load_image(url, name="it", allow_urls=True)
    assert len(str(info.value).splitlines()) == 1


def test_a_server_that_does_not_answer_in_time_is_one_line(server, monkeypatch):
    monkeypatch.setattr(urls, "SECONDS", 0.05)
    answered = threading.Event()
    monkeypatch.setattr(Handler, "send_response", lambda *_: answered.wait(10) and None)
    try:
        with pytest.raises(UserError, match="timed out"):
            load_image(f"{server.url}/a.png", allow_urls=True)
    finally:
        answered.set()


def test_a_file_that_takes_too_long_is_one_line(server, monkeypatch):
    monkeypatch.setattr(urls, "MOST_SECONDS", -1.0)
    with pytest.raises(UserError, match="takes longer than"):
        load_image(f"{server.url}/a.png", allow_urls=True)


def test_a_connection_that_is_closed_is_one_line(server, monkeypatch):
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.connection.close())
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_image(f"{server.url}/a.png", allow_urls=True)


def test_headers_without_end_are_one_line(server, monkeypatch):
    server.answers["/many"] = (200, {f"X-{i}": "x" for i in range(http.client._MAXHEADERS + 1)}, b"")
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_image(f"{server.url}/many", allow_urls=True)
