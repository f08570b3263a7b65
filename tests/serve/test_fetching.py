"""Images by URL: what is fetched, and every way in which a URL may not lead behind the server."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
import trustme

from clf_serve import fetching
from clf_serve.fetching import Address, Resolve, fetch_image, is_public, look_up
from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem

LIMITS = ServeLimits(allow_urls=True, max_bytes=100_000)
HERE = IPv4Address("127.0.0.1")
IMAGE = b"\x89PNG..." * 100


@dataclass
class Site:
    """A web server on 127.0.0.1, and what it was asked."""

    port: int
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def url(self, path: str = "/image.png", host: str = "pictures.example") -> str:
        return f"http://{host}:{self.port}{path}"


@contextmanager
def site(answer: Callable[[BaseHTTPRequestHandler], None], tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.asked.append((self.path, dict(self.headers.items())))
            try:
                answer(self)
            except OSError:
                self.close_connection = True  # the client had enough

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a handshake that the client broke off

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    found = Site(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)


def send(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **given}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def names(*answers: str) -> tuple[Resolve, list[str]]:
    """A DNS that gives these addresses, one set a question: ``"127.0.0.1 10.0.0.1"`` are two of one."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1].split()

    return resolve, asked


def fetch(url: str, *, limits: ServeLimits = LIMITS, seconds: float = 20, **options: Any) -> bytes:
    """With the test's site in the place of the internet."""
    options = {"allowed": lambda address: address == HERE, "resolve": names("127.0.0.1")[0], "ports": None, **options}
    return asyncio.run(fetch_image(url, limits, time.monotonic() + seconds, **options))


def refused(url: str, status: int, code: str, **options: Any) -> str:
    with pytest.raises(Problem) as caught:
        fetch(url, **options)
    assert (caught.value.status, caught.value.code) == (status, code), caught.value.message
    return caught.value.message


def test_an_image_is_fetched_and_little_is_told_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no proxy of the environment is used
    with site(send(IMAGE, Content_Type="text/html")) as found:
        assert fetch(found.url("/a%20b.png?x=1#part")) == IMAGE

    ((path, headers),) = found.asked
    assert path == "/a%20b.png?x=1"
    assert headers["Host"] == f"pictures.example:{found.port}"
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


def test_urls_are_refused_unless_they_are_allowed() -> None:
    resolve, asked = names("127.0.0.1")

    refused("http://pictures.example/", 400, "url_input", limits=ServeLimits(), resolve=resolve)
    assert not ServeLimits().allow_urls and not asked


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:80/",
        "http://127.1/",
        "http://0/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fd00::1]/",
        "http://10.0.0.1/",
        "https://192.168.1.1/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://127.0.0.1.%6eothing/",
        "http://xn--0/",
    ],
)
def test_no_spelling_of_a_private_address_is_connected_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf_serve.fetching._Guarded.connect_tcp", watched := Watched())

    refused(url, 400, "url_refused", allowed=is_public, resolve=look_up, ports=frozenset({80, 443}))
    assert watched.opened == []


class Watched:
    """Takes the place of what opens connections: notes those that would be opened."""

    def __init__(self) -> None:
        from clf_serve.fetching import _Guarded

        self.opened: list[list[str]] = []
        self._guarded = _Guarded(is_public, look_up)

    async def __call__(self, host: str, port: int, **_: object) -> None:
        self.opened.append(await self._guarded._addresses(host, port))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1@example.com/", "user name"),
        ("http://example.com:80@127.0.0.1/", "user name"),
        ("http://:password@example.com/", "user name"),
        ("http://example.com\\@127.0.0.1/", "characters"),
        ("http://example.com /", "characters"),
        ("http://example.com/\r\nX: y", "characters"),
        ("http://exämple.com/", "characters"),
        ("http://example.com:22/", "ports"),
        ("https://example.com:8443/", "ports"),
        ("http://example.com:99999/", "well-formed"),
        ("http://[::1/", "well-formed"),
        ("http:///etc/passwd", "host"),
        ("http:example.com", "host"),
        ("file:///etc/passwd", "http and https"),
        ("gopher://example.com/", "http and https"),
        ("unix:///run/docker.sock", "http and https"),
        ("//example.com/", "http and https"),
        ("http://example.com/" + "a" * 2048, "longer"),
    ],
)
def test_a_url_of_a_doubtful_form_is_refused_before_anything_is_resolved(url: str, reason: str) -> None:
    resolve, asked = names("127.0.0.1")

    assert reason in refused(url, 400, "url_refused", resolve=resolve, ports=frozenset({80, 443}))
    assert not asked


PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
NOT_PUBLIC = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::a00:1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "5f00::1",
    "2606:4700:4700::1111%eth0",
]


@pytest.mark.parametrize(("text", "public"), [(t, True) for t in PUBLIC] + [(t, False) for t in NOT_PUBLIC])
def test_only_addresses_of_the_public_internet_are_public(text: str, public: bool) -> None:
    assert is_public(ip_address(text)) is public


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    resolve, asked = names("127.0.0.1 127.0.0.2")

    refused("http://pictures.example/", 400, "url_refused", resolve=resolve)
    assert asked == ["pictures.example"]


def test_a_name_that_changes_its_address_is_asked_only_once() -> None:
    resolve, asked = names("127.0.0.1", "127.0.0.2")
    seen: list[Address] = []

    def allowed(address: Address) -> bool:
        seen.append(address)
        return address == HERE

    with site(send(IMAGE)) as found:
        assert fetch(found.url(host="rebinding.example"), resolve=resolve, allowed=allowed) == IMAGE

        moved = names("127.0.0.1", "10.0.0.1")  # and between redirects
        with site(send(b"", 302, Location=found.url(host="rebinding.example"))) as first:
            refused(first.url(host="rebinding.example"), 400, "url_refused", resolve=moved[0])
    assert asked == ["rebinding.example"] and seen == [HERE]
    assert len(found.asked) == 1 and len(moved[1]) == 2


def test_a_dead_address_gives_way_to_the_next() -> None:
    with site(send(IMAGE)) as found:
        resolve, _ = names("127.0.0.9 127.0.0.1")
        assert fetch(found.url(), resolve=resolve, allowed=lambda address: address.is_loopback) == IMAGE


def test_redirects_are_followed_by_the_same_rules() -> None:
    def hop(handler: BaseHTTPRequestHandler) -> None:
        left = int(handler.path[1:])
        send(IMAGE)(handler) if left == 0 else send(b"", 301, Location=f"/{left - 1}")(handler)

    with site(hop) as found:
        assert fetch(found.url("/3")) == IMAGE
        assert "more than 3" in refused(found.url("/4"), 422, "url_failed")
    assert [path for path, _ in found.asked] == ["/3", "/2", "/1", "/0", "/4", "/3", "/2", "/1"]


@pytest.mark.parametrize(
    ("location", "status", "code"),
    [
        ("http://127.0.0.2/secret", 400, "url_refused"),
        ("http://2130706434/secret", 400, "url_refused"),
        ("//[::1]/secret", 400, "url_refused"),
        ("file:///etc/passwd", 400, "url_refused"),
        ("http://user:pw@pictures.example/", 400, "url_refused"),
        ("http://xn--0/", 400, "url_refused"),
        ("http://pictures.example:99999/", 400, "url_refused"),
        ("", 422, "url_failed"),
    ],
)
def test_a_redirect_leads_nowhere_else(location: str, status: int, code: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "pictures.example" else await look_up(host, port)

    with site(send(b"", 302, Location=location)) as found:
        refused(found.url(), status, code, resolve=resolve)
    assert len(found.asked) == 1


def test_a_slow_drip_ends_at_the_deadline() -> None:
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        send(b"", Content_Length="1000")(handler)
        while not stop.wait(0.05):
            handler.wfile.write(b".")

    with site(drip) as found:
        start = time.monotonic()
        refused(found.url(), 504, "url_timeout", seconds=0.5)
        assert time.monotonic() - start < 15
        stop.set()


def test_a_name_that_never_resolves_ends_at_the_deadline() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    refused("http://pictures.example/", 504, "url_timeout", seconds=0.2, resolve=resolve)
    refused("http://pictures.example/", 504, "url_timeout", seconds=-1)


def test_an_endless_or_large_body_is_cut_off() -> None:
    written = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while written < 50_000_000:
            written += handler.wfile.write(bytes(10_000))

    with site(endless) as found:
        refused(found.url(), 422, "url_too_large")
    assert written < 50_000_000

    with site(send(bytes(LIMITS.max_bytes))) as found:
        assert len(fetch(found.url())) == LIMITS.max_bytes
    with site(send(bytes(LIMITS.max_bytes + 1))) as found:
        refused(found.url(), 422, "url_too_large")


def test_a_gzip_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with site(send(bomb, Content_Encoding="gzip")) as found:
        assert "compressed" in refused(found.url(), 422, "url_failed")
    assert found.asked[0][1]["Accept-Encoding"] == "identity"


def test_bytes_are_counted_by_who_asked() -> None:
    counted: list[int] = []

    def take(n: int) -> bool:
        counted.append(n)
        return sum(counted) < 5_000

    with site(send(bytes(90_000))) as found:
        refused(found.url(), 429, "overloaded", take=take)
    with site(send(IMAGE)) as found:
        counted.clear()
        fetch(found.url(), take=take)
    assert sum(counted) == len(IMAGE)


def test_what_the_other_side_does_wrong_is_no_fault_of_ours() -> None:
    with site(send(b"", 404)) as found:
        assert "404" in refused(found.url(), 422, "url_failed")
    with site(lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n") and None) as found:
        refused(found.url(), 422, "url_failed")
    with site(send(IMAGE[:100], Content_Length="500", Connection="close")) as found:
        refused(found.url(), 422, "url_failed")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        refused(f"http://pictures.example:{nobody.getsockname()[1]}/", 422, "url_failed")


def test_a_certificate_is_checked_for_the_host_s_name() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("pictures.example").configure_cert(server)
    authority.configure_trust(client)
    with site(send(IMAGE), server) as found:
        base = found.url().replace("http:", "https:")
        assert fetch(base, tls=client) == IMAGE
        assert "certificate" in refused(base.replace("pictures", "others"), 422, "url_failed", tls=client)
        assert "certificate" in refused(base, 422, "url_failed")  # an authority that nobody knows


def test_look_ups_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver may hang for long; no more than so many threads wait for it."""
    answer = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        answer.wait(30)
        return [(0, 0, 0, "", ("127.0.0.1", 80))]

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(look_up("slow.example", 80)) for _ in range(40)]
        await asyncio.sleep(0.2)
        answer.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    results = asyncio.run(main())
    assert results.count(["127.0.0.1"]) == 32
    assert [str(error) for error in results if error != ["127.0.0.1"]] == ["too many look-ups at a time"] * 8


def test_too_many_look_ups_are_no_fault_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf_serve.fetching._LOOKUPS", threading.BoundedSemaphore(1))
    with fetching._LOOKUPS:
        refused("http://pictures.example/", 429, "overloaded", resolve=look_up)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    refused("http://pictures.example/", 429, "overloaded", resolve=look_up)
    assert fetching._LOOKUPS.acquire(blocking=False)  # its place is given back


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    ],
    ids=["100", "headers", "chunks"],
)
def test_a_reply_of_crumbs_is_cut_off_early(head: bytes, more: bytes) -> None:
    """It would keep the event loop busy up to the deadline, however few its bytes."""
    written = 0

    def crumbs(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        handler.wfile.write(head)
        while written < 100_000_000:
            written += handler.wfile.write(more * 2000)

    with site(crumbs) as found:
        refused(found.url(), 422, "url_failed", seconds=20, limits=ServeLimits(allow_urls=True))
    assert written < 100_000_000


def test_a_handshake_that_hangs_leaves_no_connection() -> None:
    async def main(port: int) -> bytes:
        with pytest.raises(Problem, match="in time"):
            await fetch_image(
                f"https://pictures.example:{port}/",
                LIMITS,
                time.monotonic() + 0.3,
                allowed=lambda address: address == HERE,
                resolve=names("127.0.0.1")[0],
                ports=None,
            )
        return await asyncio.to_thread(read_to_the_end)  # while the loop goes on, as it does in a server

    def read_to_the_end() -> bytes:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            said = b""
            while piece := connection.recv(4096):
                said += piece
            return said

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert asyncio.run(main(listener.getsockname()[1]))[0] == 22  # it did begin a handshake
