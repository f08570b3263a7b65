"""Images by URL, fetched so that a caller cannot reach through the server into the network behind it.

Where server-side request forgery comes from, and what stops it here (OWASP's cheat sheet on SSRF prevention,
https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html):

- However an address is spelt (127.1, 2130706433, 0x7f.1, a name in somebody's DNS), it is resolved once, inside the
  only function that opens connections; *every* address found must be public, and the connection goes to one of those
  very addresses, so a second, different answer of the DNS is never asked for. TLS still checks the host's name.
- Redirects are followed by hand, three at most, each by the same rules. No proxies of the environment, no cookies, no
  credentials, http and https on their own ports only.
- Bytes are counted as they come, nothing is unpacked (a reply in gzip is refused), and all of it ends at the deadline.
- A reply of endless headers or of single bytes costs far more time than bytes: both are refused early.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeAlias

import httpcore
import httpx

from clf_serve.limits import ServeLimits
from clf_serve.problems import Problem, overloaded

Address: TypeAlias = IPv4Address | IPv6Address
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Addresses of a host, as text; raises OSError."""

_LONGEST = 2048  # characters of a URL
_REDIRECTS = 3
_MOVED = frozenset({301, 302, 303, 307, 308})
_CONNECT = 5.0  # seconds for one address, so that a dead one leaves time for the next
_PORTS = frozenset({80, 443})
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, section 2.4; all else of IPv6 has another purpose
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
_NO_HOSTS = tuple(map(IPv6Network, ("2001::/23", "2002::/16", "3fff::/20")))  # Teredo and its kin; 6to4; RFC 9637
# Of IPv4: protocol assignments, where Oracle's cloud has its metadata (RFC 6890; Python before 3.11.9 takes most of it
# for public); relays of 6to4 (RFC 7526); what every machine in Azure's cloud reaches its host by, a public address.
_NO_HOSTS_4 = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
_LONGEST_HEAD = 2**15  # bytes of status lines and headers, together with those of any "100 Continue"
_HEAD_READ = 2**12  # bytes of them that are parsed before others have their turn on the event loop
_PIECES, _PIECE = 256, 256  # after so many pieces of a body, they must hold so many bytes on average
_LOOKUPS = threading.BoundedSemaphore(32)  # threads that wait for the DNS, which may keep them for long


class _BusyError(OSError):
    """There are too many look-ups already."""


class _NotPublicError(OSError):
    """The host has no address, or not only public ones; the caller is not told which."""


def is_public(address: Address) -> bool:
    """Whether an address is that of a host on the public internet, by IANA's registries of special purposes.

    IPv4 inside IPv6 (mapped, NAT64) counts as that IPv4 address; tunnels (6to4, Teredo) never do.

    >>> [is_public(ip_address(text)) for text in ("93.184.215.14", "169.254.169.254", "::ffff:10.0.0.1", "224.0.0.1")]
    [True, False, False, False]
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address.scope_id is not None or address not in _GLOBAL_UNICAST:
            return False
        return address.is_global and not any(address in net for net in _NO_HOSTS)
    if any(address in net for net in _NO_HOSTS_4):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host by the system's resolver, in a thread of its own: a slow DNS holds up nothing else.

    Raises:
        OSError: there is none, or too many look-ups hang already.
    """
    if not _LOOKUPS.acquire(blocking=False):
        raise _BusyError("too many look-ups at a time")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def tell(found: list[str], error: OSError | None) -> None:
        if answer.done():  # nobody waits any more
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: list[str] = []
        failure: OSError | None = None
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(row[4][0]) for row in rows))
        except OSError as error:
            failure = error
        except UnicodeError:  # a label that is empty or too long
            failure = OSError("not a name")
        finally:
            _LOOKUPS.release()
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, found, failure)

    try:
        threading.Thread(target=ask, name="clf-dns", daemon=True).start()
    except RuntimeError as error:  # the system gives no more threads
        _LOOKUPS.release()
        raise _BusyError(str(error)) from error
    return await answer


class _Counted(httpcore.AsyncNetworkStream):
    """A connection on which the head of a reply has an end, and which a cancelled handshake does not leave open."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._read = 0
        self.in_head = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.in_head and self._read >= _LONGEST_HEAD:
            raise httpcore.RemoteProtocolError("the headers have no end")
        data = await self._inner.read(min(max_bytes, _HEAD_READ) if self.in_head else max_bytes, timeout)
        self._read += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return _Counted(await self._inner.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            await self._inner.aclose()  # httpcore does so for errors, but not when the deadline cancels it
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Guarded(httpcore.AsyncNetworkBackend):
    """Resolves a host once and connects to what was found, if all of it is allowed. There is no other way out."""

    def __init__(self, allowed: Callable[[Address], bool], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._connect(address, port, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._connect(addresses[-1], port, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("no socket files")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _connect(self, address: str, port: int, *options: Any) -> httpcore.AsyncNetworkStream:
        return _Counted(await self._inner.connect_tcp(address, port, _CONNECT, *options))

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = [ip_address(text) for text in await self._resolve(host, port)]
        except _BusyError:
            raise
        except (OSError, ValueError) as error:
            raise _NotPublicError from error
        if not found or not all(map(self._allowed, found)):
            raise _NotPublicError
        return [str(address) for address in found]


async def fetch_image(
    url: str,
    limits: ServeLimits,
    deadline: float,
    *,
    param: str = "input",
    take: Callable[[int], bool] = lambda n: True,
    allowed: Callable[[Address], bool] = is_public,
    resolve: Resolve = look_up,
    ports: frozenset[int] | None = _PORTS,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """The bytes behind a URL. Whether they are an image, only decoding tells; what the other server says is not asked.

    Args:
        deadline: of ``time.monotonic``.
        param: the field that held the URL, for the refusal.
        take: is told of bytes as they come, and says whether there is room for them.
        allowed: which addresses may be connected to; ``ports``: on which ports, None for all.
        tls: how certificates are checked; by default against the usual authorities.

    Raises:
        Problem: 400 a URL that is not fetched, by its form or by where it leads; 422 no image came of it; 429 no room;
            504 not in time.
    """
    if not limits.allow_urls:
        raise Problem(400, "url_input", "the input is a URL; this server fetches nothing", param=param)
    backend = _Guarded(allowed, resolve)
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            for _ in range(_REDIRECTS + 1):
                target = _checked(url, param, ports)
                found = await _get(target, backend, limits, take, tls or _authorities(), param)
                if isinstance(found, bytes):
                    return found
                url = _next(target, found, param)
    except (TimeoutError, httpcore.TimeoutException):
        raise Problem(504, "url_timeout", "the URL did not answer in time", param=param) from None
    except _BusyError:
        raise overloaded(1) from None
    except _NotPublicError:
        text = "the URL's host does not resolve to public addresses, and nothing is fetched from others"
        raise Problem(400, "url_refused", text, param=param) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
        reason = "its certificate is not valid" if _is_tls(error) else "the connection failed"
        raise _failed(param, f"the URL cannot be fetched: {reason}") from None
    raise _failed(param, f"the URL redirects more than {_REDIRECTS} times")


def _checked(url: str, param: str, ports: frozenset[int] | None) -> httpx.URL:
    """The URL, parsed once; the same parse decides where the connection goes."""

    def refused(reason: str) -> Problem:
        return Problem(400, "url_refused", reason, param=param)

    if len(url) > _LONGEST:
        raise refused(f"the URL is longer than {_LONGEST} characters")
    if not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
        raise refused("the URL holds characters that a URL cannot; encode them")
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise refused("the URL is not well-formed") from None
    if target.scheme not in ("http", "https"):
        raise refused("only http and https URLs are fetched")
    if target.userinfo:
        raise refused("a URL with a user name or password is not fetched")
    if not target.raw_host:  # ``host`` would decode punycode, of which not all is valid
        raise refused("the URL names no host")
    if not 0 < _port(target) < 65536:
        raise refused("the URL is not well-formed")
    if ports is not None and _port(target) not in ports:
        raise refused("only URLs on the ports 80 and 443 are fetched")
    return target


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


async def _get(
    url: httpx.URL,
    backend: httpcore.AsyncNetworkBackend,
    limits: ServeLimits,
    take: Callable[[int], bool],
    tls: ssl.SSLContext,
    param: str,
) -> bytes | str:
    """The body, or where a redirect points. One connection, which is closed after it."""
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", b"clf-vision"),
        (b"Accept", b"image/*, */*;q=0.1"),
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
    ]
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=_port(url), target=url.raw_path
    )  # without its fragment
    pool = httpcore.AsyncConnectionPool(ssl_context=tls, http1=True, http2=False, network_backend=backend)
    async with pool, pool.stream("GET", target, headers=headers) as reply:
        said = {name.lower(): value for name, value in reply.headers}
        if reply.status in _MOVED:
            return said.get(b"location", b"").decode("latin-1")
        if reply.status != 200:
            raise _failed(param, f"the URL answered {reply.status}")
        if said.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise _failed(param, "the URL answered in a compressed form, which was not asked for")
        announced = said.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limits.max_bytes:
            raise _too_large(param, limits)
        stream = reply.extensions["network_stream"]
        assert isinstance(stream, _Counted)
        stream.in_head = False
        body = bytearray()
        pieces = 0
        async for piece in reply.aiter_stream():
            body += piece
            pieces += 1
            if pieces > _PIECES and len(body) < pieces * _PIECE:
                raise _failed(param, "the URL answered in very small pieces")
            if len(body) > limits.max_bytes:
                raise _too_large(param, limits)
            if not take(len(piece)):
                raise overloaded(1)
    return bytes(body)


def _next(at: httpx.URL, location: str, param: str) -> str:
    if not location:
        raise _failed(param, "the URL redirects to nowhere")
    try:
        return str(at.join(location))
    except (httpx.InvalidURL, ValueError):
        text = "the URL redirects to what is no URL"
        raise Problem(400, "url_refused", text, param=param) from None


@cache
def _authorities() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _failed(param: str, reason: str) -> Problem:
    return Problem(422, "url_failed", reason, param=param)


def _too_large(param: str, limits: ServeLimits) -> Problem:
    return Problem(422, "url_too_large", f"the URL holds more than {limits.max_bytes / 2**20:g} MiB", param=param)
