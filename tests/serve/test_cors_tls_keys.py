"""Options about who may come: pages of other origins, TLS, and keys from a file."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
import uvicorn
from browsers import chromium, needs_browser
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st
from ops_helpers import KEY, application, ask
from starlette.types import ASGIApp

from clf.errors import ServeError
from clf_serve.http.access import Calls
from clf_serve.http.cors import Cors, read_origins
from clf_serve.keys import read_keys
from clf_serve.tls import Tls, read_tls

PAGE = "https://app.example.org"


def whole(*origins: str, expose: tuple[str, ...] = ()) -> ASGIApp:
    """The application in the order of the server."""
    return Calls(Cors(application(), read_origins(origins), expose))


def preflight(
    method: str = "POST", headers: str = "authorization,content-type,x-api-key", origin: str = PAGE
) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }


def test_a_preflight_needs_no_key() -> None:
    [reply] = ask(whole(PAGE), lambda client: client.options("/v1/embeddings", headers=preflight()), key=None)

    assert reply.status_code == 200
    assert reply.headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    allowed = reply.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "content-type", "x-api-key", "traceparent"} <= set(allowed)
    assert "Access-Control-Allow-Credentials" not in reply.headers


@pytest.mark.parametrize(
    "headers",
    [
        preflight(origin="https://evil.example.org"),
        preflight(origin="null"),
        preflight(origin=PAGE + ".evil.org"),
        preflight(method="PUT"),
        preflight(headers="x-other"),
    ],
)
def test_another_preflight_is_refused(headers: dict[str, str]) -> None:
    [reply] = ask(whole(PAGE), lambda client: client.options("/v1/embeddings", headers=headers), key=None)

    allowed = reply.headers.get("Access-Control-Allow-Origin")
    assert reply.status_code == 400 and (allowed is None or headers["Origin"] == PAGE)


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("/thumbnails/1", KEY, 200), ("/busy", KEY, 429), ("/busy", None, 401), ("/broken", KEY, 500)],
)
def test_a_page_may_read_every_answer(path: str, key: str | None, status: int) -> None:
    app = whole(PAGE, "http://localhost:3000", expose=("X-Other",))
    [reply] = ask(app, lambda client: client.get(path, headers={"Origin": PAGE}), key=key)

    assert reply.status_code == status
    assert reply.headers["Access-Control-Allow-Origin"] == PAGE
    exposed = reply.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"Retry-After", "Server-Timing", "X-Request-ID", "X-Shape", "X-Other"} <= set(exposed)
    assert reply.headers["Vary"].lower().split(", ").count("origin") == 1


def test_replies_for_different_origins_are_kept_apart() -> None:
    """Or a browser offers a picture that it keeps, without these headers, to a page that may read it."""
    for headers in ({}, {"Origin": "https://evil.example.org"}):
        [reply] = ask(whole(PAGE), lambda client, h=headers: client.get("/thumbnails/1", headers=h))
        assert "Access-Control-Allow-Origin" not in reply.headers
        assert reply.headers["Vary"] == "Origin"


def test_every_origin() -> None:
    [reply] = ask(whole("*"), lambda client: client.get("/busy", headers={"Origin": "null"}))
    assert reply.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(
    "text", ["https://a.example", "http://localhost:3000", "http://[::1]:8080", "http://127.0.0.1:1"]
)
def test_an_origin_is_taken_as_it_is(text: str) -> None:
    assert read_origins([text, text]) == [text]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://a.example/", "would never match what a browser sends; write https://a.example"),
        ("https://A.example", "write https://a.example"),
        ("https://a.example:443", "write https://a.example"),
        ("http://user:secret@a.example", "write http://a.example"),
        ("https://a.example/page?x", "write https://a.example"),
        ("a.example", "is no origin"),
        ("null", "is no origin"),
        ("https://", "is no origin"),
        ("https://*.a.example", "is no origin"),
        ("ftp://a.example", "is no origin"),
        ("https://a.example:99999", "is no origin"),
        ("https://ü.example", "is no origin"),
    ],
)
def test_what_is_no_origin(text: str, words: str) -> None:
    with pytest.raises(ServeError, match=words.replace("?", r"\?")):
        read_origins([text])


def test_every_origin_and_one_more() -> None:
    with pytest.raises(ServeError, match="allows every origin already"):
        read_origins(["*", PAGE])


@contextlib.contextmanager
def running(app: ASGIApp, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A real server in a thread; its port."""
    config = uvicorn.Config(app, log_config=None, access_log=False)
    config.load()
    config.ssl = context
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


FETCH = """
const [base, key, done] = arguments;
const ask = async (path, options) => {
  try {
    const reply = await fetch(base + path, options);
    const text = await reply.text();
    return [reply.status, reply.headers.get("Retry-After"), !!reply.headers.get("X-Request-ID"), !!text];
  } catch (error) { return "hidden"; }
};
const headers = {"X-API-Key": key, "Content-Type": "image/jpeg"};
(async () => done([
  await ask("/v1/embeddings", {method: "POST", body: "x", headers}),
  await ask("/busy", {headers}), await ask("/busy", {}), await ask("/broken", {headers}),
]))();
"""


@needs_browser
def test_in_a_real_browser(tmp_path: Path) -> None:
    async def page(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"<title>a page</title>"})  # type: ignore[operator]

    with (
        running(page) as own,  # type: ignore[arg-type]
        running(page) as foreign,  # type: ignore[arg-type]
        running(whole(f"http://127.0.0.1:{own}")) as port,
        chromium(tmp_path / "profile") as browser,
    ):
        browser.set_script_timeout(60)
        browser.get(f"http://127.0.0.1:{own}/")
        allowed = browser.execute_async_script(FETCH, f"http://127.0.0.1:{port}", KEY)
        browser.get(f"http://127.0.0.1:{foreign}/")
        stranger = browser.execute_async_script(FETCH, f"http://127.0.0.1:{port}", KEY)

    assert allowed == [
        [200, None, True, True],
        [429, "3", True, True],
        [401, None, True, True],
        [500, None, True, True],
    ]
    assert stranger == ["hidden"] * 4


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Pair:
    """A certificate and its key in files."""

    def __init__(self, folder: Path, authority: trustme.CA, name: str = "one") -> None:
        made = authority.issue_cert("127.0.0.1", common_name=name)
        self.cert, self.key, self.locked = (folder / f"{name}{end}" for end in (".crt", ".key", ".locked"))
        self.cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        self.key.write_bytes(made.private_key_pem.bytes())
        key = load_pem_private_key(self.key.read_bytes(), None)
        self.locked.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption("pässword".encode()))
        )


@pytest.fixture
def pair(tmp_path: Path, authority: trustme.CA) -> Pair:
    return Pair(tmp_path, authority)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_a_server_with_a_certificate(
    pair: Pair, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_PASSWORD", "pässword")
    tls = read_tls(pair.cert, pair.locked, "THE_PASSWORD")
    assert tls is not None
    context = tls.context()

    def name_of(port: int, client: ssl.SSLContext) -> object:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            client.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            subject = dict(pair[0] for pair in (secure.getpeercert() or {})["subject"])  # type: ignore[misc, index]
            return subject["commonName"]

    with running(application(), context) as port:
        trust = trusting(authority)
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust, trust_env=False, timeout=20) as client:
            assert client.get("/busy", headers={"X-API-Key": KEY}).status_code == 429
        assert name_of(port, trust) == "one"

        old = trusting(authority)
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            name_of(port, old)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)

        newer, other = Pair(tmp_path, authority, "two"), Pair(tmp_path, authority, "three")
        with pytest.raises(ServeError, match="does not belong"):
            Tls(newer.cert, other.key).load_into(context)
        assert name_of(port, trust) == "one"  # nothing of the pair that does not match
        Tls(newer.cert, newer.key).load_into(context)
        assert name_of(port, trust) == "two"


def test_what_is_wrong_with_a_certificate_is_told(pair: Pair, authority: trustme.CA, tmp_path: Path) -> None:
    other = Pair(tmp_path, authority, "other")
    text, nothing = tmp_path / "text", tmp_path / "nothing"
    text.write_text("no PEM")
    broken = tmp_path / "broken"
    broken.write_bytes(pair.key.read_bytes()[:100] + b"\n-----END PRIVATE KEY-----\n")

    for tls, words in (
        (Tls(nothing, pair.key), f"--tls-cert {nothing} cannot be read: No such file"),
        (Tls(pair.cert, nothing), f"--tls-key {nothing} cannot be read: No such file"),
        (Tls(tmp_path, pair.key), f"--tls-cert {tmp_path} cannot be read: Is a directory"),
        (Tls(pair.cert, other.key), f"the key {other.key} does not belong to the certificate {pair.cert}"),
        (Tls(pair.cert, pair.locked), f"--tls-key {pair.locked} is encrypted; put its password into"),
        (Tls(pair.cert, pair.locked, "mistaken"), f"--tls-key {pair.locked} cannot be opened with the password"),
        (Tls(text, pair.key), f"--tls-cert {text} holds no certificate in PEM"),
        (Tls(pair.cert, text), f"--tls-key {text} holds no private key in PEM"),
        (Tls(pair.key, pair.cert), f"--tls-cert {pair.key} holds no certificate in PEM"),
        (Tls(pair.cert, broken), f"the certificate {pair.cert} and the key {broken} cannot be used"),
    ):
        with pytest.raises(ServeError) as told:
            tls.context()
        assert str(told.value).startswith(words) and "mistaken" not in str(told.value)


def test_options_of_tls_belong_together(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    assert read_tls(None, None) is None
    assert read_tls(pair.cert, pair.key) == Tls(pair.cert, pair.key)
    with pytest.raises(ServeError, match="--tls-cert needs --tls-key too"):
        read_tls(pair.cert, None)
    with pytest.raises(ServeError, match="--tls-key needs --tls-cert too"):
        read_tls(None, pair.key)
    with pytest.raises(ServeError, match="--tls-key-password-env needs"):
        read_tls(None, None, "NAME")
    with pytest.raises(ServeError, match="NOT_SET of --tls-key-password-env is not set"):
        read_tls(pair.cert, pair.locked, "NOT_SET")


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbf# customers\r\nalpha\r\n\n  beta,#2  \n\t# gone: old\nalpha\ngamma")
    assert read_keys(path) == ["alpha", "beta,#2", "gamma"]


@pytest.mark.parametrize("content", [b"", b"# only words\n\n"])
def test_a_file_without_keys_does_not_open_the_server(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ServeError, match="holds no key; write one on each line"):
        read_keys(path)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1))
def test_a_line_is_a_key_or_is_never_shown(tmp_path_factory: pytest.TempPathFactory, line: str) -> None:
    path = tmp_path_factory.getbasetemp() / "some-keys"
    path.write_bytes(f"first\n{line}".encode())
    try:
        keys = read_keys(path)
    except ServeError as error:
        assert str(error) == (
            f"line 2 of --api-key-file {path} has a blank or a character outside of printable ASCII within its key, "
            "which no header can carry"
        )
    else:
        bare = line.strip(" \t\r")
        assert keys == ["first"] if not bare or bare.startswith("#") or bare == "first" else keys == ["first", bare]


def test_files_that_cannot_be_keys(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="cannot be read: No such file"):
        read_keys(tmp_path / "none")
    with pytest.raises(ServeError, match="cannot be read: Is a directory"):
        read_keys(tmp_path)
    with pytest.raises(ServeError, match="larger than 1 MiB"):
        read_keys(Path("/dev/zero"))
