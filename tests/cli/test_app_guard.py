"""What the web page's server refuses, hides and deletes."""

import asyncio
import http.client
import itertools
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from PIL import Image

from ovml.cli.app.pictures import Album
from ovml.cli.app.ranking import Ranking
from ovml.cli.app.server import HEADERS, build_server, listen
from ovml.cli.app.uploads import PUBLIC, THUMBNAILS, Uploads, upload_folder
from ovml.cli.app.visit import SKIP, Events, Visit
from ovml.cli.main import command
from ovml.inference.tagger import LabelScore
from ovml.utils.errors import UserError

pytest.importorskip("gradio", reason="the page needs gradio")
from ovml.cli.app import guard as guards
from ovml.cli.app.guard import Guard, Served

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
HERE = "localhost:7860"
WAIT = 60


class Inner:
    """An application that keeps what it is asked, and answers."""

    def __init__(self, answer=b"{}", kind="application/json", chunks=1):
        self.answer, self.kind, self.chunks, self.scopes, self.bodies = answer, kind, chunks, [], []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        message = await receive() if scope["method"] == "POST" else {"body": b""}
        self.bodies.append(message["body"])
        assert not message.get("more_body")
        size = str(len(self.answer) * self.chunks).encode()
        headers = [(b"content-type", self.kind.encode()), (b"content-length", size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for left in reversed(range(self.chunks)):
            await send({"type": "http.response.body", "body": self.answer, "more_body": left > 0})


def request(method="GET", path="/config", headers=(), host=HERE):
    pairs = [("host", host), *headers] if host is not None else headers
    raw = [(name.encode(), value.encode()) for name, value in pairs]
    return {"type": "http", "method": method, "path": path, "query_string": b"", "headers": raw, "raw_path": None}


def ask(guard, scope, messages=None):
    """Status, headers and body of an answer, and the number of messages that were read."""
    sent, count = [], itertools.count()
    source = iter(messages or [{"type": "http.request", "body": b"{}"}])

    async def receive():
        next(count)
        message = next(source)
        return await message if asyncio.iscoroutine(message) else message

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body, next(count)


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path, max_file_size=1000)


@pytest.fixture
def inner():
    return Inner()


@pytest.fixture
def guard(inner, uploads):
    return Guard(inner, Served(LOCAL), uploads, max_body=500)


def is_one_line(body):
    return body.endswith(b"\n") and body.count(b"\n") == 1 and len(body) < 100


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7860", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:7860"]
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/gradio_api/queue/data"), ("POST", guards.UPLOAD)])
def test_the_pages_own_hosts_are_served(guard, inner, host, method, path):
    assert ask(guard, request(method, path, host=host))[0] == 200
    assert len(inner.scopes) == 1


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:7860", "localhost.evil.example", "evil.example#localhost", "localhost@evil"),
        *("", None, "192.168.1.5", "[::2]", "localhost:x", "localhost/", "[localhost", "127.0.0.1.", "xlocalhost"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", path) for path in ("/", "/config", "/gradio_api/queue/data", f"{guards.FILE}{PUBLIC}/a.png")],
        *[("POST", path) for path in guards.POSTED],
        *[("OPTIONS", guards.UPLOAD), ("HEAD", "/")],
    ],
)
def test_other_hosts_are_refused_before_anything_is_read(guard, inner, host, method, path):
    status, _, body, read = ask(guard, request(method, path, host=host))
    assert (status, read, inner.scopes) == (421, 0, [])
    assert is_one_line(body)


def test_one_host_is_named(guard, inner):
    assert ask(guard, request(headers=[("host", "localhost")]))[0] == 421
    assert ask(guard, request(headers=[("x-forwarded-host", "evil.example")]))[0] == 421
    assert ask(guard, request(headers=[("x-forwarded-host", "localhost, evil.example")]))[0] == 421
    assert inner.scopes == []


@pytest.mark.parametrize(
    ("host", "status"),
    [("192.168.1.5:7860", 200), ("[fe80::1]", 200), ("evil.example", 421), ("1.2.3.4.evil.example", 421), ("1.2", 421)],
)
def test_a_page_for_all_is_served_at_every_address_but_not_at_every_name(inner, uploads, host, status):
    assert ask(Guard(inner, Served(LOCAL, any_address=True), uploads), request(host=host))[0] == status


@pytest.mark.parametrize("hosts", [{"host": "a.example"}, {"host": HERE, "x-forwarded-host": "a.example"}, {}])
def test_a_page_behind_a_proxy_has_its_name(inner, uploads, hosts):
    guard = Guard(inner, Served(LOCAL, proxied=frozenset({"a.example"})), uploads)
    headers = [(name, value) for name, value in hosts.items() if name != "host"]
    for origin, status in (("https://a.example", 200), ("https://a.example:8443", 200), ("https://b.example", 403)):
        scope = request("POST", guards.UPLOAD, [*headers, ("origin", origin)], hosts.get("host", HERE))
        assert ask(guard, scope)[0] == status


@pytest.mark.parametrize("path", guards.POSTED)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost:7860"}, 200),
        ({"origin": "http://LOCALHOST:7860", "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({}, 200),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:7861"}, 403),
        ({"origin": "http://localhost"}, 403),
        ({"origin": "http://127.0.0.1:7860"}, 403),
        ({"origin": "file://localhost:7860"}, 403),
        ({"origin": "http://localhost:7860.evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://localhost:7860", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "null", "content-type": "text/plain"}, 403),
    ],
)
def test_posts_of_other_sites_are_refused(guard, inner, path, headers, status):
    answered, _, body, read = ask(guard, request("POST", path, list(headers.items())))
    assert (answered, read > 0, len(inner.scopes)) == (status, status == 200, status == 200)
    assert status == 200 or is_one_line(body)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_other_origins_are_refused_whatever_they_ask(guard, inner, method):
    status, headers, *_ = ask(guard, request(method, "/config", [("origin", "http://evil.example")]))
    assert (status, inner.scopes) == (403, [])
    assert not any(name.startswith(b"access-control") for name in headers)


def test_a_link_from_another_site_opens_the_page(guard):
    assert ask(guard, request(path="/", headers=[("sec-fetch-site", "cross-site")]))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/gradio_api/run/predict", 405),
        ("POST", "/gradio_api/process_recording", 405),
        ("POST", "/gradio_api/component_server", 405),
        ("POST", "/gradio_api/vibe-edit", 405),
        ("POST", "/config", 405),
        ("PUT", guards.UPLOAD, 405),
        ("DELETE", "/config", 405),
        ("GET", "/gradio_api/deep_link", 404),
        ("GET", "/gradio_api/proxy=http://127.0.0.1", 404),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("GET", "/gradio_api/file=http://127.0.0.1/x", 404),
        ("GET", f"/gradio_api/file={PUBLIC}x/a.png", 404),
        ("GET", f"/gradio_api/file={PUBLIC}/../a.png", 404),
        ("GET", "/assets/../gradio_api/file=/etc/passwd", 404),
        ("GET", "/ovml-thumbnails/../gradio_api/file=/etc/passwd", 404),
        ("GET", "/ovml-thumbnails", 404),
        ("POST", "/ovml-thumbnails/x", 405),
        ("GET", "/monitoring", 404),
        ("HEAD", "/monitoring", 404),
    ],
)
def test_what_the_page_does_not_ask_is_refused(guard, inner, method, path, status):
    assert ask(guard, request(method, path))[0] == status
    assert inner.scopes == []


def test_websockets_are_refused_and_the_lifespan_passes(guard, inner):
    sent = []

    async def send(message):
        sent.append(message["type"])

    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert (sent, inner.scopes) == (["websocket.close"], [])
    asyncio.run(guard({"type": "lifespan"}, None, send))
    assert inner.scopes == [{"type": "lifespan"}]


FORM = 2**16  # a form around a file may be as large as this
AT_ONCE = 16  # files that are received at the same time, of one form or of several


@pytest.mark.parametrize(("path", "most"), [(guards.UPLOAD, AT_ONCE * (1000 + FORM)), ("/gradio_api/queue/join", 500)])
def test_large_bodies_are_refused_as_they_come(guard, inner, path, most):
    def chunks(size):
        while True:
            yield {"type": "http.request", "body": bytes(size), "more_body": True}

    status, _, body, read = ask(guard, request("POST", path), chunks(most // 4))
    assert (status, read, inner.scopes) == (413, 5, [])
    assert is_one_line(body)
    for length in (str(most + 1), "9" * 5000):
        assert ask(guard, request("POST", path, [("content-length", length)]), chunks(1))[::3] == (413, 0)
    assert inner.scopes == []
    whole = [
        {"type": "http.request", "body": bytes(most - 1), "more_body": True},
        {"type": "http.request", "body": b"x"},
    ]
    assert ask(guard, request("POST", path, [("content-length", str(most))]), whole)[0] == 200
    assert inner.bodies == [bytes(most - 1) + b"x"]


def test_bodies_hold_no_more_than_the_largest_together(inner, uploads):
    guard = Guard(inner, Served(LOCAL), uploads, at_once=2)
    room = 2 * (1000 + FORM)
    statuses = []

    async def run():
        ready = asyncio.Event()

        def post(size):
            messages = iter([{"type": "http.request", "body": bytes(size), "more_body": True}, None])

            async def receive():
                message = next(messages)
                if message is None:
                    await ready.wait()
                return message or {"type": "http.request", "body": b""}

            async def send(message):
                statuses.extend([message["status"]] if "status" in message else [])

            return asyncio.create_task(guard(request("POST", guards.UPLOAD), receive, send))

        first = post(room)
        await asyncio.sleep(0)
        await post(1)
        assert statuses == [503]
        ready.set()
        await first
        await post(room)

    asyncio.run(run())
    assert statuses == [503, 200, 200]


def test_a_slow_body_ends(inner, uploads):
    async def never():
        await asyncio.Event().wait()

    guard = Guard(inner, Served(LOCAL), uploads, seconds=0.01)
    start = {"type": "http.request", "body": b"x", "more_body": True}
    status, _, body, read = ask(guard, request("POST", guards.UPLOAD), [start, never()])
    assert (status, read, inner.scopes) == (408, 2, [])
    assert is_one_line(body)


def test_a_body_that_breaks_off_is_not_passed_on(guard, inner):
    start = {"type": "http.request", "body": b"x", "more_body": True}
    assert ask(guard, request("POST", guards.UPLOAD), [start, {"type": "http.disconnect"}])[0] == 400
    assert inner.scopes == []


def test_few_bodies_are_read_at_once(inner, uploads):
    guard = Guard(inner, Served(LOCAL), uploads, at_once=2)
    statuses = []

    async def run():
        ready = asyncio.Event()

        async def receive():
            await ready.wait()
            return {"type": "http.request", "body": b"{}"}

        async def send(message):
            statuses.extend([message["status"]] if "status" in message else [])

        def post():
            return asyncio.create_task(guard(request("POST", guards.UPLOAD), receive, send))

        waiting = [post(), post()]
        await asyncio.sleep(0)  # both begin
        await post()
        assert statuses == [503]
        ready.set()
        await asyncio.gather(*waiting)
        await post()

    asyncio.run(run())
    assert statuses == [503, 200, 200, 200]


@pytest.mark.parametrize("name", ["ovml-x", 'Ge müse "x"'])
def test_the_folder_is_not_told_and_its_name_is_understood(tmp_path, name):
    folder = tmp_path / name
    data = {"path": f"{folder}/a.png", "text": "Gemüse"}
    for written in (json.dumps(data), json.dumps(data, ensure_ascii=False)):
        for kind in ("application/json", "text/html; charset=utf-8", "text/event-stream"):
            inner = Inner(written.encode(), kind, chunks=2)
            guard = Guard(inner, Served(LOCAL), Uploads(folder, 1))
            status, headers, body, _ = ask(guard, request(headers=[("accept-encoding", "br")]))
            assert status == 200
            assert b"content-length" not in headers  # it is another
            assert b"accept-encoding" not in dict(inner.scopes[0]["headers"])
            half = json.loads(body[: len(body) // 2])
            assert half == {"path": f"{PUBLIC}/a.png", "text": "Gemüse"}
            assert json.loads(body[len(body) // 2 :]) == half

    inner = Inner(b"pixels", "image/png")
    guard = Guard(inner, Served(LOCAL), Uploads(folder, 1))
    assert ask(guard, request(path=f"{guards.FILE}{PUBLIC}/a.png"))[1][b"content-length"] == b"6"
    assert inner.scopes[0]["path"] == f"{guards.FILE}{folder}/a.png"
    posted = json.dumps({"path": f"{PUBLIC}/a.png"}).encode()
    ask(guard, request("POST", "/gradio_api/queue/join"), [{"type": "http.request", "body": posted}])
    assert json.loads(inner.bodies[1]) == {"path": f"{folder}/a.png"}
    ask(guard, request("POST", guards.UPLOAD), [{"type": "http.request", "body": posted}])
    assert inner.bodies[2] == posted


def test_large_scripts_are_compressed(guard, inner):
    ask(guard, request(path="/assets/a.js", headers=[("accept-encoding", "br")]))
    assert dict(inner.scopes[0]["headers"])[b"accept-encoding"] == b"br"


# ---------------------------------------------------------------------- the files


def put(folder, name, size=10, age=0.0):
    path = folder / f"{name}-hash" / f"{name}.png"
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    used = time.time() - age
    os.utime(path, (used, used))
    return path


def names(folder):
    return sorted(path.stem for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"max_age": 250}, ["a", "b", "c"]),
        ({"max_files": 2}, ["a", "b"]),
        ({"max_total_size": 29}, ["a", "b"]),
        ({"max_total_size": 30}, ["a", "b", "c"]),
        ({"max_age": 50, "max_files": 0}, []),
    ],
)
def test_the_longest_unused_files_are_deleted(tmp_path, limits, kept):
    for name, age in (("c", 200), ("a", 0), ("d", 300), ("b", 100)):
        put(tmp_path, name, age=age)
    Uploads(tmp_path, 1000, **limits).tidy()
    assert names(tmp_path) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}-hash" for name in kept]


def test_twenty_of_the_largest_and_a_hundred_files_are_kept_for_ten_minutes(tmp_path):
    uploads = Uploads(tmp_path, max_file_size=1000)
    for i in range(25):
        put(tmp_path, f"large{i:02}", 1000, age=i)
    uploads.tidy()
    assert names(tmp_path) == [f"large{i:02}" for i in range(20)]
    for i in range(120):
        put(tmp_path, f"small{i:03}", 1)
    uploads.tidy()
    assert len(names(tmp_path)) == 100
    for path in tmp_path.rglob("*.png"):
        os.utime(path, (time.time() - 550,) * 2)
    uploads.tidy()
    assert len(names(tmp_path)) == 100
    for path in tmp_path.rglob("*.png"):
        os.utime(path, (time.time() - 650,) * 2)
    uploads.tidy()
    assert names(tmp_path) == []


def test_examples_are_kept_and_so_is_the_folder(tmp_path):
    uploads = Uploads(tmp_path, 10, max_files=0, max_age=0)
    (tmp_path / "unfinished").write_bytes(b"x")
    uploads.tidy()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "moon.png").write_bytes(b"x")
    uploads.tidy()
    assert names(tmp_path) == ["moon"]


@pytest.mark.parametrize("given", [True, False])
def test_the_folder_of_uploads_is_new_and_goes_away(tmp_path, monkeypatch, given):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "default"))
    (tmp_path / "default").mkdir()
    parent = tmp_path / ("given" if given else "default")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    if given:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(parent))
    with upload_folder() as folder, upload_folder() as other:
        assert (folder.parent, folder.is_dir()) == (parent, True)
        assert other.parent == folder
        put(folder, "a")
    assert os.environ.get("GRADIO_TEMP_DIR") == (str(parent) if given else None)
    assert list(parent.iterdir()) == []


# ---------------------------------------------------------------------- the page itself


def picture(path, colour="red", size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


class Stub:
    """Ranks nothing, and tells whether it ranks two images at once."""

    calibrated, scorings = False, ()

    def __init__(self):
        self.both, self.met, self.images = threading.Barrier(2), [], []

    def rank(self, image, vocabulary, probabilities, scoring=""):
        self.images.append(Path(image))
        try:
            self.both.wait(timeout=0.3)
            self.met.append(True)
        except threading.BrokenBarrierError:
            self.both.reset()
            self.met.append(False)
        return Ranking(image, vocabulary, [LabelScore("moon", 0.5)])

    def embed(self, vocabulary, probabilities, scoring=""):
        pass

    def best(self, image, vocabulary, probabilities, scoring=""):
        return tuple(self.rank(image, vocabulary, probabilities).scores)


class Site:
    """The page with a stub for a model, in a thread."""

    def __init__(self, taken, folder, stub, uploads):
        self.port, self.folder, self.stub, self.uploads = taken.getsockname()[1], folder, stub, uploads

    def open(self, path, data=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=WAIT)

    def status(self, *args, **headers):
        try:
            with self.open(*args, **headers) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    def announce(self, path, most):
        """The status for a body that is one byte larger than `most`, of which nothing is sent."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)) as connection:
            connection.putrequest("POST", path)
            connection.putheader("Content-Length", str(most + 1))
            connection.endheaders()
            return connection.getresponse().status

    def upload(self, name, content):
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n--x--\r\n'
        kind = "multipart/form-data; boundary=x"
        return self.status("/gradio_api/upload", body % (name.encode(), content), Content_Type=kind)

    def call(self, element, event, data, session, event_data=None):
        """Do what the page does at an event, and what follows at once; returns the line that ends it."""
        config = json.loads(self.status("/config")[2])
        (trigger,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == element)
        number = next(d["id"] for d in config["dependencies"] if [trigger, event] in d["targets"])
        return self.run(number, trigger, data, session, event_data)

    def run(self, number, trigger, data, session, event_data=None):
        about = {"fn_index": number, "trigger_id": trigger, "session_hash": session, "event_data": event_data}
        body = json.dumps({"data": data, **about}).encode()
        self.status("/gradio_api/queue/join", body, Content_Type="application/json")
        with self.open(f"/gradio_api/queue/data?session_hash={session}") as lines:
            return next(line.decode() for line in lines if b'"process_completed"' in line)

    def choose(self, path, session):
        """Upload has happened; show the image."""
        return self.call("drop", "upload", [[{"path": path, "meta": {"_type": "gradio.FileData"}}], None], session)

    def rank(self, path, session):
        self.choose(path, session)
        config = json.loads(self.status("/config")[2])
        (result,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == "result")
        number = next(d["id"] for d in config["dependencies"] if d["outputs"] == [result])
        return self.run(number, None, [None, "moon", "none"], session)


@contextmanager
def running(allowed=(), album=None):
    from ovml.cli.app.page import build_page

    with listen("127.0.0.1", 0) as taken, upload_folder() as folder:
        uploads = Uploads(folder, max_file_size=1000, max_files=4)
        stub = Stub()
        events = Events(stub, {}, album)
        server = build_server(
            build_page(events), taken, uploads, allowed_hosts=allowed, max_labels=10, thumbnails=events.thumbnails
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            yield Site(taken, folder, stub, uploads)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def site():
    with running(("photos.example",)) as site:
        yield site


def test_the_page_is_guarded(site):
    assert site.status("/config", Host="evil.example")[0] == 421
    for host in ("photos.example", "localhost:1", "127.0.0.1"):
        assert site.status("/config", Host=host)[0] == 200
    for origin in ("http://evil.example", "null"):
        status, headers, _ = site.status("/gradio_api/upload", b"{}", Origin=origin)
        assert status == 403
        assert headers["access-control-allow-origin"] is None


def test_every_answer_has_the_headers(site):
    for answer in (site.status("/"), site.status("/nothing"), site.status("/config", Host="evil.example")):
        assert answer[1]["x-content-type-options"] == "nosniff"
        assert {name: answer[1][name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("path", ["/", "/config", f"{guards.FILE}{PUBLIC}/nothing.png", "/gradio_api/queue/data"])
def test_no_folder_is_told(site, path):
    status, _, body = site.status(path)
    assert str(site.folder) not in body
    assert str(Path.cwd()) not in body
    assert str(site.folder.parent) not in body
    assert (PUBLIC in body) == path.startswith(guards.FILE), status


@pytest.mark.parametrize(
    "named", ["", ".", "file:///etc/passwd", f"{PUBLIC}/../x.png", f"{PUBLIC}/..", r"/ovml-uploads\u002f..", "\0"]
)
def test_errors_tell_no_folder_either(site, named):
    answer = site.choose(named, f"session{abs(hash(named))}")
    assert '"success":false' in answer
    for folder in (site.folder, Path.cwd(), site.folder.parent):
        assert str(folder) not in answer


def test_thumbnails_are_served_by_their_names_only(tmp_path):
    picture(tmp_path / "photos" / "secret name.png")
    with running(album=Album(tmp_path / "photos")) as site:
        config = json.loads(site.status("/config")[2])
        (shown,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == "gallery")
        tag = next(d["id"] for d in config["dependencies"] if d["outputs"] == [shown])
        answer = site.run(tag, None, [None, "moon", "none"], "visitor")
        assert "secret name.png" in answer
        assert str(tmp_path) not in answer
        (name,) = set(re.findall(f"{THUMBNAILS}/([0-9a-f]{{32}})", answer))
        with site.open(f"{THUMBNAILS}/{name}") as image:
            assert image.read(3) == b"\xff\xd8\xff"
            assert (image.headers["content-type"], image.headers["cache-control"][:7]) == ("image/jpeg", "private")
        others = [
            "",
            "/",
            "/0",
            "/secret%20name.png",
            "/..%2fphotos",
            "/%2e%2e/config",
            f"/{name}x",
            f"/{name}/a",
            "/%00",
        ]
        for other in others:
            assert site.status(THUMBNAILS + other)[0] == 404, other
        assert site.status(f"{THUMBNAILS}/{name}", Host="evil.example")[0] == 421
        assert site.status(f"{THUMBNAILS}/{name}", Origin="http://evil.example")[0] == 403
        path = str(tmp_path / "photos" / "secret name.png")
        assert '"success":false' in site.choose(path, "other")


def test_uploads_are_told_by_a_public_name_and_the_oldest_deleted(site):
    for i in range(10):
        status, _, body = site.upload(f"scene {i}.png", b"%d" % i)
        assert status == 200
        (path,) = json.loads(body)
        assert path.startswith(f"{PUBLIC}/")
        assert path.endswith(f"/scene {i}.png")
    kept = [path for path in site.folder.rglob("scene*.png") if path.parent.name != "examples"]
    assert len(kept) == 4
    assert any(path.name == "scene 9.png" for path in kept)
    assert site.status(f"{guards.FILE}{path.replace(' ', '%20')}")[2] == "9"
    assert site.announce(guards.UPLOAD, AT_ONCE * (1000 + FORM)) == 413
    status, _, body = site.upload("large.png", bytes(1001))
    assert (status, "maximum allowed size" in body) == (413, True)


def test_a_ranked_file_is_used_and_one_model_run_goes_at_a_time(site):
    (path,) = json.loads(site.upload("one.png", b"one")[2])
    stored, before = site.folder / path.removeprefix(f"{PUBLIC}/"), time.time() - 300
    os.utime(stored, (before, before))
    answers = {}
    threads = [
        threading.Thread(target=lambda name=name: answers.update({name: site.rank(path, name)})) for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all('"success":true' in answer for answer in answers.values()), answers
    assert site.stub.met == [False, False]
    assert site.stub.images == [stored, stored]
    assert stored.stat().st_mtime > before + 100


def test_labels_may_be_as_many_as_are_allowed(site):
    most = 2**20 + 10 * 1024
    body = b"[" + b" " * (most - 1)
    assert site.status("/gradio_api/queue/join", body, Content_Type="application/json")[0] == 422
    assert site.announce("/gradio_api/queue/join", most) == 413


def test_uploads_that_nobody_ranks_are_deleted_in_time(monkeypatch):
    monkeypatch.setattr("ovml.cli.app.server.MINUTE", 0.01)
    done = threading.Event()
    tidy = Uploads.tidy

    with running() as site:
        path = put(site.folder, "old", age=3600)
        monkeypatch.setattr(Uploads, "tidy", lambda self: (tidy(self), done.set()))
        assert done.wait(WAIT)
        assert not path.exists()


def test_an_image_whose_labels_are_looked_at_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("ovml.cli.app.visit.where", lambda *found: found)
    stub = Stub()
    stub.find = lambda ranking, label: (label,)
    events, visit = Events(stub, {}), Visit()
    image = picture(tmp_path / "a.png")
    events.add([str(image)], visit)
    visit.ranking = Ranking(str(image), None, [LabelScore("moon", 0.5), LabelScore("fish", 0.4)])
    before = time.time() - 300
    os.utime(image, (before, before))
    events.show(visit)
    assert time.time() - image.stat().st_mtime < 200
    os.utime(image, (before, before))
    assert events.find(visit, 2) == ("fish",)
    assert time.time() - image.stat().st_mtime < 200
    for rank in (None, -1, 3, 10**9):
        assert events.find(visit, rank) == SKIP
    assert events.find(Visit(), 1) == SKIP


# ---------------------------------------------------------------------- the command


@pytest.fixture
def started(monkeypatch, capsys):
    """Runs the command up to its server, and returns what the server got and what was said."""
    pytest.importorskip("torch")
    got = []

    class Server:
        def run(self, sockets):
            pass

    def build(page, taken, *args):
        got.append((page, *args[:-1]))
        return Server()

    def run(*arguments):
        monkeypatch.setattr("ovml.cli.app.command.build_server", build)
        command("app")(["--port", "0", "--no-browser", *arguments])
        return got[-1], capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("host", "notice"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False), ("127.0.0.2", True)]
)
def test_a_page_that_others_reach_says_so(started, host, notice):
    _, said = started("--host", host)
    assert (f"everyone who reaches {host} can use the page; there is no password" in said.err) == notice


def test_limits_and_hosts_reach_the_server(started):
    arguments = ["--max-upload-mb", "3", "--max-labels", "7", "--allowed-host", "A.example", "--allowed-host", "b"]
    (page, uploads, host, allowed, most), _ = started(*arguments)
    assert uploads.max_file_size == 3 * 2**20
    assert (host, allowed, most) == ("127.0.0.1", ["a.example", "b"], 7)
    assert not uploads.folder.exists()  # it is over
    assert any(getattr(block, "info", None) and "at most 7" in block.info for block in page.blocks.values())


@pytest.mark.parametrize(
    ("options", "chosen", "typed"),
    [
        (["--labels", "cat,red dog"], "none", "cat, red dog"),
        (["--labels", "a,b,c", "--max-labels", "2"], "given (3)", ""),
        (["--labels-file", "{folder}/names.txt"], "given (2)", ""),
        (["--vocabulary", "voc"], "voc (20)", ""),
    ],
)
def test_labels_and_images_of_the_command_are_those_of_the_page(started, tmp_path, monkeypatch, options, chosen, typed):
    from ovml.cli.app import page as pages

    picture(tmp_path / "photos" / "one.png")
    (tmp_path / "names.txt").write_text("cat\nred dog\n")
    shown, build = [], pages.build_page
    monkeypatch.setattr(pages, "build_page", lambda *args: shown.append(args) or build(*args))
    started("--images", str(tmp_path / "photos"), *(option.format(folder=tmp_path) for option in options))
    ((events, name, text, title),) = shown
    assert (name, text, title) == ("ovml-demo", typed, chosen)
    assert [events.album.name(i) for i in range(len(events.album))] == ["one.png"]


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "a b", "", "*"])
def test_a_host_that_is_no_name_is_one_line(name):
    with pytest.raises(UserError, match="--allowed-host: expected a host name") as raised:
        command("app")(["--allowed-host", name])
    assert "\n" not in str(raised.value)


def test_all_addresses_are_served_where_all_are_listened_at():
    from ovml.cli.app.page import build_page

    for host, address, status in (("0.0.0.0", "192.0.2.7", 200), ("127.0.0.1", "192.0.2.7", 421)):
        with listen(host, 0) as taken, upload_folder() as folder:
            server = build_server(build_page(Events(Stub(), {})), taken, Uploads(folder, 10), host)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
            thread.start()
            try:
                site = Site(taken, folder, None, None)
                assert site.status("/robots.txt", Host=address)[0] == status
            finally:
                server.should_exit = True
                thread.join()
