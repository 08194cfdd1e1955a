"""The page of --serve over http: its results, and what it refuses."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import threading
from urllib.parse import quote

import pytest
from helpers.browser import Browser, chromium
from helpers.photos import noise
from helpers.runs import CPU, expect_exit
from helpers.stopping import in_a_pipe, status_of
from PIL import Image

import export
import search
from common import terminal
from common.errors import InputError
from searching import server as module
from searching.exact import best_rows
from searching.queries import STDIN
from searching.server import PhotoSearch, parse_address, serve, take_address

QUERY = "a small red circle"


@pytest.fixture(scope="module")
def model(exported):
    return export.read_model(exported)[0]


@pytest.fixture(scope="module")
def photos(data, tmp_path_factory):
    """Photos, one of whose names must be escaped, for all tests to read."""
    folder = shutil.copytree(data / "images", tmp_path_factory.mktemp("serve") / "photos")
    noise(90, 30).save(folder / "<b>&\udcff.png")
    return folder


@pytest.fixture(scope="module")
def listed(model, photos, tmp_path_factory):
    """All that search.py finds, as its --json has it: (name, score) of all photos."""
    patch = pytest.MonkeyPatch()
    cache = tmp_path_factory.mktemp("cache")

    def find(*words):
        output = io.StringIO()
        with patch.context() as context:
            context.setenv("XDG_CACHE_HOME", str(cache))
            context.setattr(terminal, "write_above_bars",
                            lambda text, stream: output.write(text)
                            if stream is search.terminal.sys.stdout else None)
            search.main([*map(str, words), "--photos", str(photos), "--top", "1000", "--json",
                         "--workers", "0", *CPU])
        results = json.loads(output.getvalue())["queries"][0]["results"]
        return [(os.path.basename(result["path"]), result["score"]) for result in results]

    return find


class Client:
    """A client of a server that runs in a thread of this process."""

    def __init__(self, photo_search):
        self.server = take_address("0")
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(
            target=serve, args=(self.server, photo_search, {"photos": "2 in <b>"}), daemon=True)
        self.thread.start()
        self.ask("GET", "/")  # once it answers, it has printed its address

    def ask(self, method, path, body=None, **headers):
        """Return status, headers and content of an answer."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def raw(self, request):
        """Send bytes, and return the status line of the answer; b"" where there is none."""
        with socket.create_connection(("127.0.0.1", self.server.server_port), 30) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").readline()

    def search(self, text="", photo=b""):
        status, _, content = self.ask("POST", f"/search?text={quote(text)}", photo)
        assert status == 200, content
        return json.loads(content)

    def close(self):
        self.server.shutdown()
        self.thread.join()


@pytest.fixture(scope="module")
def index(model, photos):
    """Names and embeddings of the photos, as an index has them."""
    names = sorted(os.listdir(photos))
    rows = [model.encode_image(model.preparation.pixels([photos / name])).detach()
            for name in names]
    return names, module.Tensor.new_tensor(rows[0], [row[0].tolist() for row in rows])


@pytest.fixture
def client(model, photos, index, monkeypatch):
    names, embeds = index
    monkeypatch.setattr(terminal, "quiet", True)
    client = Client(PhotoSearch(model, names, photos,
                                lambda queries: best_rows(queries, embeds, 1000), None, False))
    yield client
    client.close()


# ----------------------------------------------------------------------------------- what is found


def test_results_are_those_of_the_command_line_page_by_page(client, listed, exported, monkeypatch):
    wanted = listed(exported, QUERY)
    monkeypatch.setattr(module, "RESULTS_PER_PAGE", 7)
    answer = client.search(QUERY)
    results = answer["results"]
    assert len(results) == 7 and answer["count"] == len(wanted) == 41
    while len(results) < answer["count"]:
        status, _, content = client.ask(
            "GET", f"/results?search={answer['search']}&start={len(results)}")
        more = json.loads(content)["results"]
        assert status == 200 and 0 < len(more) <= 7
        results += more
    assert [result["score"] for result in results] == pytest.approx(
        [score for _, score in wanted], abs=1e-5)
    assert {result["name"] for result in results} == {
        name.replace("\udcff", "\\udcff") for name, _ in wanted}
    assert all(result["posterior"] is None for result in results)


def test_a_dropped_photo_finds_itself_and_joins_a_sentence(client, listed, exported, photos):
    content = (photos / "test_00003.png").read_bytes()
    first = client.search(photo=content)["results"][0]
    assert first["name"] == "test_00003.png" and first["score"] == pytest.approx(1, abs=1e-6)
    wanted = listed(exported, QUERY, "--like", photos / "test_00003.png")
    assert [result["score"] for result in client.search(QUERY, content)["results"]] == (
        pytest.approx([score for _, score in wanted], abs=1e-5))


def test_photos_are_served_as_small_jpegs_of_their_pixels(client, index, photos):
    names, _ = index
    row = names.index("<b>&\udcff.png")
    for path, size in (f"/thumbnail/{row}", (90, 30)), (f"/photo/{row}", (90, 30)):
        status, headers, content = client.ask("GET", path)
        image = Image.open(io.BytesIO(content))
        assert status == 200 and headers["Content-Type"] == "image/jpeg"
        assert (image.format, image.size) == ("JPEG", size)
    assert b"IHDR" not in content


def test_a_large_photo_is_made_smaller_and_turned(client, index, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(2000, 1000).save(tmp_path / "large.jpg", exif=exif)
    monkeypatch.setattr(client.server.search, "folder", tmp_path)
    monkeypatch.setattr(client.server.search, "names", ["large.jpg"])
    sizes = [Image.open(io.BytesIO(client.ask("GET", path)[2])).size
             for path in ("/thumbnail/0", "/photo/0")]
    assert sizes == [(176, 352), (800, 1600)]


def test_the_page_escapes_its_texts_and_asks_nobody_else(client):
    status, headers, content = client.ask("GET", "/")
    assert status == 200 and b"2 in &lt;b&gt;" in content and b"http" not in content
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for path in "/", "/serve.js", "/thumbnail/0", "/nothing":
        _, headers, _ = client.ask("GET", path)
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store" and "Python" not in headers["Server"]


def test_only_some_searches_are_kept(client, monkeypatch):
    monkeypatch.setattr(module, "KEPT_SEARCHES", 2)
    keys = [client.search(QUERY)["search"] for _ in range(3)]
    statuses = [client.ask("GET", f"/results?search={key}&start=0")[0] for key in keys]
    assert statuses == [404, 200, 200] and len(set(keys)) == 3
    assert client.ask("GET", f"/results?search={keys[2]}&start=99999")[2] == b'{"results": []}'


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("path", [
    "/photo/../../../../etc/passwd", "/photo/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/photo/41",
    "/photo/-1", "/photo/0.jpg", "/photo/0/", "/photo/", "/photo", "/photo/0x0", "/photo/%30",
    "/photo/test_00000.png", "/thumbnail/99999999999999999999", "/photo/\u0661", "/serve.html",
    "/serve.css", "/../search.py", "/etc/passwd", "/search", "/results/0", "/favicon.ico/0",
    "file:///etc/passwd", "/photo/0%00", "/photo/ 0", "http://localhost/etc/passwd", "*", "/\\etc"])
def test_nothing_but_photos_by_their_row_is_served(client, path):
    line = client.raw(f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                      .encode())
    assert line.split()[1] in (b"404", b"400")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:PORT", "127.0.0.1.evil.example",
                                  "localhost.evil.example", "", "[", "@127.0.0.1", "10.0.0.1",
                                  "[::ffff:10.0.0.1]", "0.0.0.0", "127.1", "a@evil.example"])
def test_a_name_of_the_web_that_leads_here_is_refused(client, host):
    """DNS rebinding: a page of the web reads what its own name leads to."""
    host = host.replace("PORT", str(client.server.server_port))
    for path in "/", "/thumbnail/0":
        assert client.ask("GET", path, Host=host)[0] == (200 if host == "@127.0.0.1" else 403)
    assert client.raw(b"GET /thumbnail/0 HTTP/1.0\r\n\r\n").split()[1] == b"403"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:80", "127.0.0.2"])
def test_this_machines_names_are_answered(client, host):
    assert client.ask("GET", "/", Host=host)[0] == 200


@pytest.mark.parametrize("headers", [
    dict(Origin="http://evil.example"), dict(Origin="null"), dict(Sec_Fetch_Site="cross-site"),
    dict(Sec_Fetch_Site="same-site"), dict(Origin="http://127.0.0.1:1"),
    dict(Origin="http://localhost")])
def test_another_page_cannot_ask(client, headers):
    """It may neither search nor show photos inside it; a link to the page works."""
    assert client.ask("POST", "/search?text=x", b"", **headers)[0] == 403
    assert client.ask("GET", "/thumbnail/0", **headers)[0] == 403
    is_link = "Sec_Fetch_Site" in headers
    assert client.ask("GET", "/", **headers)[0] == (200 if is_link else 403)
    own = dict(Origin=f"http://{client.host}", Sec_Fetch_Site="same-origin")
    assert client.ask("POST", "/search?text=circle", b"", **own)[0] == 200


@pytest.mark.parametrize("request_lines, status", [
    ("POST /search?text=x", 411), ("POST /search?text=x\r\nContent-Length: -1", 411),
    ("POST /search?text=x\r\nContent-Length: 99999999999", 413),
    ("POST /search?text=x\r\nContent-Length: 9999999999999999999999", 411),
    ("POST /search?text=x\r\nContent-Length: 5 5", 411),
    ("POST /search?text=x\r\nContent-Length: 0\r\nContent-Length: 5", 411),
    ("POST /search?text=x\r\nTransfer-Encoding: chunked\r\nContent-Length: 0", 411),
    ("POST /search?text=x\r\nContent-Length: 5", 400), ("GET /\r\nContent-Length: 5", 400),
    ("GET /\r\nTransfer-Encoding: chunked", 411), ("HEAD /", 501), ("PUT /", 501),
    ("DELETE /photo/0", 501), ("OPTIONS *", 501), ("POST /", 404), ("POST /photo/0", 404),
    ("GET /results?search=x&start=0", 404), ("GET /results?search=x&start=-1", 400),
    ("GET /results?search=x&start=1e9", 400), ("GET /results", 400),
    ("GET /results?" + "a=1&" * 30, 400), ("GET /" + "a" * 70_000, 414)])
def test_requests_that_are_none_are_refused(client, request_lines, status):
    path, _, headers = request_lines.partition("\r\n")
    line = client.raw(f"{path} HTTP/1.1\r\nHost: localhost\r\n{headers}{headers and chr(13)}"
                      f"{headers and chr(10)}\r\n".encode())
    assert int(line.split()[1]) == status
    assert client.ask("GET", "/")[0] == 200


@pytest.mark.parametrize("text, photo", [
    ("", b""), ("%20%20", b""), ("?!", b""), ("%ff", b""), ("%ed%b3%bf", b""), ("a" * 10_001, b""),
    ("", b"no photo"), ("", b"\x89PNG\r\n\x1a\n" + bytes(50)), ("", b"%!PS\nquit"),
    ("dog", b"<svg onload=alert(1)>")])
def test_a_query_that_says_nothing_is_told_in_a_line(client, text, photo):
    status, headers, content = client.ask("POST", f"/search?text={text}", photo)
    message = json.loads(content)["error"]
    assert status == 400 and message and "\n" not in message
    assert headers["Content-Type"] == "application/json"


def test_a_photo_of_too_many_pixels_is_refused(client):
    buffer = io.BytesIO()
    Image.new("1", (11_000, 11_000)).save(buffer, "PNG")
    status, _, content = client.ask("POST", "/search?text=", buffer.getvalue())
    assert status == 400 and b"make it smaller" in content


def test_no_link_leads_out_and_nothing_but_photos_is_sent(client, tmp_path, monkeypatch):
    """The folder may have changed since the index was made."""
    (tmp_path / "in").mkdir()
    noise().save(tmp_path / "out.png")
    (tmp_path / "in" / "a.png").symlink_to("../out.png")
    (tmp_path / "in" / "b.png").write_text("secret")
    (tmp_path / "in" / "c.png").symlink_to("c.png")
    os.mkfifo(tmp_path / "in" / "d.png")
    (tmp_path / "in" / "deep").symlink_to("..")
    names = ["a.png", "b.png", "c.png", "d.png", "deep/out.png", "gone.png"]
    monkeypatch.setattr(client.server.search, "folder", tmp_path / "in")
    monkeypatch.setattr(client.server.search, "names", names)
    for row in range(len(names)):
        for kind in "photo", "thumbnail":
            status, _, content = client.ask("GET", f"/{kind}/{row}")
            assert status == 404 and b"secret" not in content
    monkeypatch.setattr(client.server.search, "follow_links", True)
    assert client.ask("GET", "/photo/0")[0] == client.ask("GET", "/photo/4")[0] == 200


def test_an_error_of_the_program_ends_one_request_alone(client, monkeypatch, capsys):
    def fail(queries):
        raise RuntimeError("sizes do not match\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(client.server.search, "best_rows", fail)
        status, _, content = client.ask("POST", "/search?text=dog", b"")
    assert status == 500 and b"sizes" not in content
    error = capsys.readouterr().err
    assert error.startswith("warning: --serve: RuntimeError: sizes") and error.count("\n") == 1
    assert client.search(QUERY)["results"]


def test_clients_that_say_nothing_or_go_away_keep_nobody_waiting(client, capsys, monkeypatch):
    monkeypatch.setattr(module.PageHandler, "timeout", 0.5)
    idle = [socket.create_connection(("127.0.0.1", client.server.server_port))
            for _ in range(module.MOST_CONNECTIONS + 20)]
    for connection in idle[:20]:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
    for connection in idle[20:40]:
        connection.sendall(b"POST /search?text=x HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Length: 99999\r\n\r\nabc")
    assert client.search(QUERY)["results"]
    for connection in idle:
        connection.close()
    assert client.search(QUERY)["results"] and capsys.readouterr().err == ""


def test_a_sentence_does_not_wait_for_photos_that_never_arrive(client):
    """Where no further photo can be received, a photo is refused in a line."""
    for _ in range(module.MOST_UPLOADS):
        client.server.uploads.acquire()
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG")
    status, _, content = client.ask("POST", "/search?text=", buffer.getvalue())
    assert status == 503 and json.loads(content)["error"] == "too many photos at once: try again"
    assert client.search(QUERY)["results"]
    client.server.uploads.release(module.MOST_UPLOADS)
    assert client.search(photo=buffer.getvalue())["results"]


# ------------------------------------------------------------------------------------- the address


@pytest.mark.parametrize("text, wanted", [
    ("", ("127.0.0.1", 8765)), ("80", ("127.0.0.1", 80)), ("0", ("127.0.0.1", 0)),
    ("0.0.0.0", ("0.0.0.0", 8765)), ("localhost:9", ("localhost", 9)), ("[::1]:5", ("::1", 5)),
    ("BOX.lan:7", ("box.lan", 7))])
def test_an_address_is_a_port_a_host_or_both(text, wanted):
    assert parse_address(text) == wanted


@pytest.mark.parametrize("text", [
    "99999", "-1", "a b", "x:y", "http://x", "x/y", "x:1/y", "user@x", ":80", "::1", "x?y", "x#y",
    "[::1", "\u0663", "x\ny", "x\0", "1.2.3.4.5.6", "x" * 300])
def test_another_address_is_refused(text):
    with pytest.raises(InputError, match="--serve"):
        take_address(text)


def test_an_address_that_is_not_this_machine_alone_answers_to_more_names():
    with take_address("0.0.0.0:0") as everywhere, take_address("localhost:0") as here:
        assert here.is_local and not everywhere.is_local
        names = ["10.0.0.1", "localhost", socket.gethostname(), "evil.example", "[fe80::1]:80"]
        assert [everywhere.is_own_host(name) for name in names] == [True, True, True, False, True]
        assert [here.is_own_host(name) for name in names] == [
            False, True, socket.gethostname() == "localhost", False, False]


def test_a_taken_port_is_told_before_anything_is_read(exported, photos, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(search, "read_model", None)
        expect_exit([str(exported), "--photos", str(photos), "--serve", port], 2, capsys,
                    [f"--serve {port}"], search.main)


@pytest.mark.parametrize("words, named", [
    (["x", "--photos", "P"], ["query 'x'", "--serve"]), ([STDIN, "--photos", "P"], ["--serve"]),
    (["--photos", "P", "--like", "x.png"], ["--like"]), (["--photos", "P", "--json"], ["--json"]),
    (["--photos", "P", "--html", "x"], ["--html"]), (["--photos", "P", "--faiss"], ["--faiss"]),
    (["--captions", "c.txt"], ["--serve"]), ([], ["--photos"])])
def test_what_does_not_go_with_the_page_is_refused(exported, photos, tmp_path, capsys, monkeypatch,
                                                   words, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "P").symlink_to(photos)
    expect_exit([str(exported), *words, "--serve"], 2, capsys, named, search.main)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_closes_the_page_in_a_line(exported, photos, number, status):
    child, out, err = in_a_pipe(lambda: search.main(
        [str(exported), "--photos", str(photos), "--serve", "0", "--workers", "0", "--quiet",
         *CPU]))
    address = out.readline().decode().strip()
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=30)
    connection.request("POST", "/search?text=circle", b"")
    assert json.loads(connection.getresponse().read())["count"] == 41
    os.kill(child, number)
    assert status_of(child) == status
    assert err.read().decode().count("\n") == 1
    for stream in out, err:
        stream.close()
    connection.close()


# ------------------------------------------------------------------------------------- in a browser


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_the_page_searches_in_a_browser(client, photos, tmp_path, monkeypatch):
    """A sentence, results as they scroll, a photo, a mistake; light, dark and on a phone."""
    monkeypatch.setattr(module, "RESULTS_PER_PAGE", 8)
    figures = "document.querySelectorAll('.results figure').length"
    browser = Browser(tmp_path / "profile")
    try:
        browser.look(390, 500)
        browser.open(f"http://{client.host}/")
        browser.run("document.getElementById('text').value = 'a small red circle'; "
                    "document.querySelector('button').click()")
        browser.wait("document.getElementById('status').textContent.startsWith('41 photos')")
        browser.wait("document.querySelector('.results img').naturalWidth")
        assert 8 <= browser.run(figures) < 41
        browser.wait(f"window.scrollTo(0, document.body.scrollHeight), {figures} === 41")
        assert browser.run("document.querySelectorAll('.results b').length === new Set([..."
                           "document.querySelectorAll('.results b')].map(b => b.innerText)).size")
        assert browser.run("[...document.querySelectorAll('figcaption')].some("
                           "(one) => one.textContent === '<b>&\\\\udcff.png')")
        for width in 320, 390, 1200:
            browser.look(width)
            assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        colour = "getComputedStyle(document.body).backgroundColor"
        light = browser.run(colour)
        browser.look(dark=True)
        assert browser.run(colour) != light
        browser.run("document.getElementById('text').value = ''")
        browser.choose_file("#photo", photos / "test_00003.png")
        browser.wait("document.querySelector('figcaption')?.textContent === 'test_00003.png'")
        assert browser.wait("document.getElementById('preview').naturalWidth")
        assert browser.complaints() == []
        browser.run("document.getElementById('remove').click(); "
                    "document.querySelector('form').requestSubmit()")
        browser.wait("document.getElementById('status').className === 'error'")
        assert browser.run(figures) == 0
        browser.call("Network.emulateNetworkConditions", offline=True, latency=0,
                     downloadThroughput=0, uploadThroughput=0)
        browser.run("document.getElementById('text').value = 'dog'; "
                    "document.querySelector('form').requestSubmit()")
        browser.wait("document.getElementById('status').textContent.includes('does not answer')")
    finally:
        browser.close()
