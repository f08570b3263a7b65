"""TLS of the server's own: certificate and key from files, checked before a model is loaded."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from clf.errors import ServeError


class _NoPasswordError(Exception):
    """The key turned out to be encrypted."""


@dataclass(frozen=True)
class Tls:
    """A certificate (with its chain) and its key, both PEM; ``password`` opens an encrypted key."""

    cert: Path
    key: Path
    password: str | None = None

    def context(self) -> ssl.SSLContext:
        """For TLS 1.2 and 1.3, with the ciphers Python holds for safe.

        Raises:
            ServeError: a file is missing or unreadable, they do not belong together, the password is missing or wrong.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Gives new connections the certificate as it is on disk now; for a reload.

        Raises:
            ServeError: as :meth:`context`; new connections then go on with the old one.
        """
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(trial)  # a pair that does not match would leave the context with half of it
        self._load(context)

    def _load(self, context: ssl.SSLContext) -> None:
        for option, path in (("--tls-cert", self.cert), ("--tls-key", self.key)):
            try:
                with path.open("rb") as file:
                    file.read(1)
            except OSError as error:
                raise ServeError(f"{option} {path} cannot be read: {error.strerror}") from error
        try:
            context.load_cert_chain(self.cert, self.key, self._ask)
        except _NoPasswordError:
            text = "is encrypted; put its password into an environment variable and name that by --tls-key-password-env"
            raise ServeError(f"--tls-key {self.key} {text}") from None
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ServeError(self._reason(error)) from error

    def _ask(self) -> str:
        """OpenSSL asks only for an encrypted key; on the terminal, if there were no such function."""
        if self.password is None:
            raise _NoPasswordError
        return self.password

    def _reason(self, error: Exception) -> str:
        reason = getattr(error, "reason", None) or ""
        if reason == "KEY_VALUES_MISMATCH":
            return f"the key {self.key} does not belong to the certificate {self.cert}; give the pair that does"
        if not _pem(self.cert, "CERTIFICATE"):
            return f"--tls-cert {self.cert} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"
        if not _pem(self.key, "PRIVATE KEY"):
            return f"--tls-key {self.key} holds no private key in PEM (-----BEGIN PRIVATE KEY-----)"
        if self.password is not None:
            return f"--tls-key {self.key} cannot be opened with the password that was given ({reason or error})"
        return f"the certificate {self.cert} and the key {self.key} cannot be used: {reason or error}"


def read_tls(cert: Path | None, key: Path | None, password_env: str | None = None) -> Tls | None:
    """What the options ``--tls-cert``, ``--tls-key`` and ``--tls-key-password-env`` say; None without them.

    Raises:
        ServeError: one without the other, a variable that is not set, or files that cannot be used.
    """
    if cert is None and key is None:
        if password_env:
            raise ServeError("--tls-key-password-env needs --tls-cert and --tls-key")
        return None
    if cert is None or key is None:
        given, missing = ("--tls-key", "--tls-cert") if cert is None else ("--tls-cert", "--tls-key")
        raise ServeError(f"{given} needs {missing} too")
    password = os.environ.get(password_env) if password_env else None
    if password_env and password is None:
        raise ServeError(f"the environment variable {password_env} of --tls-key-password-env is not set")
    tls = Tls(cert, key, password)
    tls.context()
    return tls


def _pem(path: Path, what: str) -> bool:
    """Whether the file has a block of that kind; ``PRIVATE KEY`` also finds ``RSA PRIVATE KEY`` and the like."""
    text = path.read_bytes()
    return b"-----BEGIN " in text and what.encode() + b"-----" in text
