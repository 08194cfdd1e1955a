"""The page of `search.py --serve`: a query box, a field for a photo, and results as they scroll.

Python's own http.server is enough: one page, its script, photos, and a search. No path that a
client sends is ever opened: a photo is asked for by its row in the index, and is served as a JPEG
that is made from its pixels.
"""

import functools
import io
import ipaddress
import json
import os
import re
import secrets
import socket
import socketserver
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from torch import Tensor

from common.errors import InputError, is_out_of_memory, one_line, printable
from common.terminal import print_result, warn
from figures.pages import TEMPLATES, jpeg_bytes, page
from inputs.photos import load_photo
from model import DualEncoder
from searching.exact import Best
from searching.queries import Query, check_sentence, embed_queries
from searching.results import Posterior
from training.signals import Signals, stop_on_signals

HOST, PORT = "127.0.0.1", 8765  # where the page is, unless --serve says otherwise
RESULTS_PER_PAGE = 48  # results that the page asks for at a time
KEPT_SEARCHES = 16  # whose results can still be scrolled
KEPT_THUMBNAILS = 1024
THUMBNAIL_SIZE, PHOTO_SIZE = 352, 1600  # pixels of the longer side
MOST_PHOTO_BYTES = 2**26  # of a photo that is dropped on the page
LONGEST_TEXT = 10_000  # letters of a sentence
MOST_CONNECTIONS = 128  # open at a time
MOST_UPLOADS = 8  # photos that are received at a time
MOST_DECODED = 4  # photos at a time, each of up to 300 MB
SECONDS_IDLE = 20  # that a connection may say nothing
NOT_FOUND = HTTPStatus.NOT_FOUND
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy":
        "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: of the answer.
        message: one line for the user.
    """

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class DroppedPhoto:
    """The bytes of a photo that was dropped on the page, as `inputs.photos` reads them.

    Args:
        content: of the file.
    """

    name = "the photo"

    def __init__(self, content: bytes):
        self.content = content

    def __str__(self) -> str:
        return "that was dropped"

    def open(self) -> io.BytesIO:
        """Return its bytes, as a file."""
        return io.BytesIO(self.content)

    def ends(self, length: int) -> tuple[int, bytes, bytes]:
        """Return its size and its first and last bytes, `length` of each."""
        return len(self.content), self.content[:length], self.content[-length:]


# -------------------------------------------------------------------------------------- searches


class Ranking(NamedTuple):
    """The results of a search: rows of the index, their cosines, and P(match) of each or None."""

    best: Best
    posteriors: list[float | None]


class PhotoSearch:
    """Searches photos for the page, one query at a time, and makes JPEGs of the photos.

    Args:
        model: a dual encoder with its `preparation`, in evaluation mode on its device.
        names: N paths inside `folder`.
        folder: the folder of the photos.
        best_rows: returns the best rows of each query, for queries (Q, D).
        posterior: gives P(match) of a score; None leaves it out.
        follow_links: whether a link may lead to a photo out of the folder.
    """

    def __init__(
        self, model: DualEncoder, names: Sequence[str], folder: Path,
        best_rows: Callable[[Tensor], list[Best]], posterior: Posterior | None, follow_links: bool,
    ):
        self.model, self.names, self.folder = model, names, folder
        self.best_rows, self.posterior, self.follow_links = best_rows, posterior, follow_links
        self.searching, self.decoding = threading.Lock(), threading.Semaphore(MOST_DECODED)
        self.rankings: OrderedDict[str, Ranking] = OrderedDict()
        self.thumbnail = functools.lru_cache(KEPT_THUMBNAILS)(
            lambda row: self.jpeg(row, THUMBNAIL_SIZE))

    def search(self, text: str, photo: bytes) -> dict:
        """Return the first results of a search, how many there are, and a key for the others.

        Args:
            text: a sentence; "" for none.
            photo: the bytes of a photo; b"" for none.

        Raises:
            InputError: there is neither, or nothing of them reaches the model.
        """
        if not text and not photo:
            raise InputError("say what is to be seen, or drop a photo")
        if text:
            check_sentence(text)
        query = Query(text or None, (DroppedPhoto(photo),) if photo else ())
        with self.searching:
            [best] = self.best_rows(embed_queries(self.model, [query]))
        posteriors = [None] * len(best.rows)
        if self.posterior is not None and not photo:
            posteriors = self.posterior.probabilities(best.scores)
        key = secrets.token_urlsafe(16)
        with self.searching:
            self.rankings[key] = Ranking(best, posteriors)
            while len(self.rankings) > KEPT_SEARCHES:
                self.rankings.popitem(last=False)
        return {"search": key, "count": len(best.rows), "results": self.results(key, 0)}

    def results(self, key: str, start: int) -> list[dict]:
        """Return some results of a search that `search` made, from the rank `start` on.

        Raises:
            Refused: the search is no longer kept.
        """
        ranking = self.rankings.get(key)
        if ranking is None:
            raise Refused(NOT_FOUND, "these results are no longer kept: search again")
        shown = slice(start, start + RESULTS_PER_PAGE)
        rows, scores = ranking.best.rows[shown].tolist(), ranking.best.scores[shown].tolist()
        return [{"row": row, "name": printable(self.names[row]), "score": score, "posterior": p}
                for row, score, p in zip(rows, scores, ranking.posteriors[shown])]

    def jpeg(self, row: int, size: int) -> bytes:
        """Return a photo of the index as a JPEG, its longer side `size` pixels at most.

        Raises:
            Refused: the photo is gone or cannot be read, or a link leads to it out of the folder.
        """
        path = self.folder / self.names[row]
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder))
        if not inside and not self.follow_links:
            raise Refused(NOT_FOUND, "a link leads to this photo out of the folder")
        try:
            with self.decoding:
                image = load_photo(path, upright=True)
                image.thumbnail((size, size))
                return jpeg_bytes(image, 85)
        except InputError as error:
            raise Refused(NOT_FOUND, "this photo is gone, or cannot be read now") from error


# ---------------------------------------------------------------------------------------- requests


class PageServer(ThreadingHTTPServer):
    """The server of the page. It takes its address at once, and answers in `serve` only.

    Args:
        host: name or address of this machine.
        port: 0 takes one that is free.

    Attributes:
        search: the `PhotoSearch`.
        html: bytes of the page.
        signals: the signals that end the server.
    """

    request_queue_size = MOST_CONNECTIONS  # that wait to be answered
    search: PhotoSearch
    html: bytes
    signals: Signals

    def __init__(self, host: str, port: int):
        self.host = host
        self.connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.uploads = threading.BoundedSemaphore(MOST_UPLOADS)
        [(self.address_family, *_, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM)
        super().__init__(address, PageHandler)

    def server_bind(self) -> None:
        """Take the address; without a question to the name server, which may wait for minutes."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine reaches the page."""
        return ipaddress.ip_address(self.server_address[0].partition("%")[0]).is_loopback

    def is_own_host(self, host: str) -> bool:
        """Return whether a request's `Host` names this server.

        A page of the web can make its own name lead to this machine (DNS rebinding), and would then
        read the photos. It cannot make an address or "localhost" its name.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in {"localhost", self.host.lower()}:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return not self.is_local and name == socket.gethostname().lower()
        return address.is_loopback or not self.is_local

    def process_request(self, request, client_address) -> None:
        """Answer a request in a thread, once fewer than `MOST_CONNECTIONS` are open."""
        self.connections.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address) -> None:
        """Answer a request, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def service_actions(self) -> None:
        """End the server where a signal has come; it is called twice a second."""
        self.signals.stop_if_asked()

    def handle_error(self, request, client_address) -> None:
        """Tell of an error of a request in one line; a client that has gone is none."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            warn(f"--serve: {type(error).__name__}: {one_line(error)[:200]}")


class PageHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "search.py", ""
    timeout = SECONDS_IDLE
    server: PageServer

    def do_GET(self) -> None:
        self.respond(self.get)

    def do_POST(self) -> None:
        self.respond(self.post)

    def respond(self, answer: Callable[[], tuple[str, bytes]]) -> None:
        """Send what `answer` returns, a type and the content, or the error that it raises."""
        status = HTTPStatus.OK
        try:
            self.check_request()
            kind, content = answer()
        except Refused as refusal:
            status, message = refusal.status, str(refusal)
        except InputError as error:
            status, message = HTTPStatus.BAD_REQUEST, one_line(error)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            warn(f"--serve: {type(error).__name__}: {one_line(error)[:200]}")
            status, message = HTTPStatus.INTERNAL_SERVER_ERROR, "the search failed"
            if is_out_of_memory(error):
                message = "out of memory: try a smaller photo"
        if status != HTTPStatus.OK:
            self.close_connection = True  # the rest of the request may not have been read
            kind, content = json_of({"error": message})
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def check_request(self) -> None:
        """Raise `Refused` unless a request is one of the page's own, or opens the page."""
        if not self.server.is_own_host(self.headers.get("Host", "")):
            raise Refused(HTTPStatus.FORBIDDEN, "this is not the name of this server: open it by "
                          "its address, or start it with --serve and the name")
        origin = self.headers.get("Origin")
        is_foreign = origin is not None and (
            origin.partition("://")[2].lower() != self.headers["Host"].lower())
        site = self.headers.get("Sec-Fetch-Site", "none")
        if is_foreign or self.path != "/" and site not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "only the page itself may ask for this")

    def get(self) -> tuple[str, bytes]:
        """Return the type and content of the page, its script, a photo, or further results."""
        if self.body_bytes() > 0:
            raise Refused(HTTPStatus.BAD_REQUEST, "this request has no body")
        address = urlsplit(self.path)
        if address.path == "/":
            return "text/html; charset=utf-8", self.server.html
        if address.path == "/serve.js":
            return "text/javascript; charset=utf-8", (TEMPLATES / "serve.js").read_bytes()
        if address.path == "/favicon.ico":  # browsers ask for it; the page has none
            return "image/x-icon", b""
        search = self.server.search
        if address.path == "/results":
            fields = fields_of(address.query)
            start = fields.get("start", "")
            if not re.fullmatch(r"[0-9]{1,9}", start):
                raise Refused(HTTPStatus.BAD_REQUEST, "start is no rank")
            return json_of({"results": search.results(fields.get("search", ""), int(start))})
        found = re.fullmatch(r"/(thumbnail|photo)/([0-9]{1,9})", address.path)
        if not found or int(found[2]) >= len(search.names):
            raise Refused(NOT_FOUND, "there is no such page")
        row = int(found[2])
        is_small = found[1] == "thumbnail"
        return "image/jpeg", search.thumbnail(row) if is_small else search.jpeg(row, PHOTO_SIZE)

    def post(self) -> tuple[str, bytes]:
        """Return the first results of a search for the sentence in the address, and the photo in
        the body."""
        address = urlsplit(self.path)
        if address.path != "/search":
            raise Refused(NOT_FOUND, "there is no such page")
        text = fields_of(address.query).get("text", "").strip()
        if len(text) > LONGEST_TEXT:
            raise Refused(HTTPStatus.BAD_REQUEST,
                          f"a sentence may have {LONGEST_TEXT:,} letters at most")
        return json_of(self.server.search.search(text, self.read_photo()))

    def read_photo(self) -> bytes:
        """Return the bytes of the photo that a request carries; b"" where it carries none.

        Only `MOST_UPLOADS` photos are received at a time. A search by a sentence alone waits for
        none of them.

        Raises:
            Refused: it has more than `MOST_PHOTO_BYTES`, too many are being received, or it is cut
                short.
        """
        length = self.body_bytes()
        if length == 0:
            return b""
        if length > MOST_PHOTO_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                          f"a photo may have {MOST_PHOTO_BYTES // 2**20} MB at most")
        if not self.server.uploads.acquire(blocking=False):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many photos at once: try again")
        try:
            photo = self.rfile.read(length)
        finally:
            self.server.uploads.release()
        if len(photo) < length:
            raise Refused(HTTPStatus.BAD_REQUEST, "the photo is cut short")
        return photo

    def body_bytes(self) -> int:
        """Return how many bytes the body of the request has."""
        lengths = self.headers.get_all("Content-Length", ["0"] if self.command == "GET" else [])
        is_known = len(lengths) == 1 and re.fullmatch(r"[0-9]{1,12}", lengths[0])
        if not is_known or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the size of the request is not known")
        return int(lengths[0])

    def log_message(self, *arguments) -> None:
        """Print nothing: what is searched for is nobody else's business."""


def fields_of(query: str) -> dict[str, str]:
    """Return the fields of an address's query by name; of several of one name, the first."""
    try:
        fields = parse_qs(query, max_num_fields=10, errors="strict")
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "the address cannot be read") from error
    return {name: values[0] for name, values in fields.items()}


def json_of(content: dict) -> tuple[str, bytes]:
    """Return the type and the bytes of a JSON answer."""
    return "application/json", json.dumps(content).encode()


# ----------------------------------------------------------------------------------------- serving


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of the value of --serve: PORT, HOST or HOST:PORT, or "" for the usual.

    Raises:
        InputError: it is none of these.
    """
    if not text:
        return HOST, PORT
    try:
        address = urlsplit(f"//{HOST}:{text}" if text.isdecimal() else f"//{text}")
        host, port = address.hostname, address.port
    except ValueError:
        host, port = None, None
    if not host or address.netloc != address.geturl()[2:] or "@" in text or not text.isascii():
        raise InputError(f"--serve {text[:60]}: give PORT, HOST or HOST:PORT")
    return host, PORT if port is None else port


def take_address(text: str) -> PageServer:
    """Return a server at the value of --serve, which does not answer yet.

    Raises:
        InputError: the address is none, is taken, or is not this machine's.
    """
    host, port = parse_address(text)
    try:
        return PageServer(host, port)
    except (OSError, ValueError) as error:  # a name may be none that can be looked up
        raise InputError(f"--serve {text}: {host} port {port} cannot be had ({one_line(error)}): "
                         "name another, such as --serve 0 for any port that is free") from error


def serve(server: PageServer, search: PhotoSearch, facts: dict[str, str]) -> None:
    """Serve the page until a signal ends it.

    Args:
        server: as `take_address` returns it.
        search: what the page asks.
        facts: names and values of the list at the top of the page.

    Raises:
        Stopped: by the signal.
    """
    server.search = search
    sections = (TEMPLATES / "serve.html").read_text(encoding="utf-8")
    server.html = page("search.py --serve", "Search photos", facts, sections, "search.css",
                       "serve.css").encode()
    host, port = server.host, server.server_port
    if not server.is_local:
        warn(f"--serve {host}: whoever reaches this machine can search, and see, all these photos")
    with server, stop_on_signals(lambda: "the page is closed") as server.signals:
        print_result(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        server.serve_forever(poll_interval=0.2)
