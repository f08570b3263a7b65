"""A PostgreSQL server of one's own, from the package pgserver, on a port of the loopback; killed and started as wished.

Its own launcher is not used: it needs a home and a group of its own, and cannot be killed and started again.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from gallery_helpers import MODEL
from running import free_port

from clf_serve.gallery import Identity
from clf_serve.place import Place
from clf_serve.stores import StoreGallery
from clf_serve.stores.opening import create_in, open_in

NAME = "store 'postgresql' (clf-vision 0.1.0)"
_NOBODY = 65534
_PATIENCE = 60.0  # seconds that a server may take to start or to stop
# A process that is killed loses nothing that it has handed to the system; only a machine would need fsync.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "shared_buffers": "64MB",
    "max_connections": "40",
    "autovacuum": "off",
    "wal_level": "replica",
    "max_wal_senders": "3",
    "restart_after_crash": "on",
}


@dataclass
class Postgres:
    """A running server. It trusts everybody but the role ``guarded``, whose password is ``open sesame``."""

    home: Path
    bin: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    _names: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def data(self) -> Path:
        return self.home / "data"

    def url(self, gallery: str = "", database: str = "postgres", user: str = "postgres") -> str:
        """Of a gallery; of one that is not there, where no name is given."""
        name = gallery or f"g{next(self._names)}"
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}?gallery={name}"

    def start(self, **settings: str) -> None:
        options = [part for pair in (_SETTINGS | settings).items() for part in ("-c", "=".join(pair))]
        command = [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **_as_nobody())
        end = time.monotonic() + _PATIENCE
        while not self._answers():
            assert self.process.poll() is None, (self.home / "log").read_text()[-2000:]
            assert time.monotonic() < end, "the server does not come up"
            time.sleep(0.02)

    def kill(self) -> None:
        """With no warning, and its children: the moment in which the power fails, but for the disk."""
        assert self.process is not None
        children = _children(self.process.pid)
        self.process.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.wait(_PATIENCE)
        end = time.monotonic() + _PATIENCE
        while any(map(_runs, children)) and time.monotonic() < end:
            time.sleep(0.01)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def execute(self, text: str, *values: Any, database: str = "postgres", user: str = "postgres") -> list[Any]:
        import psycopg

        where = {"host": "127.0.0.1", "port": self.port, "user": user, "dbname": database}
        with psycopg.connect(**where, autocommit=True) as connection:
            cursor = connection.execute(text, values or None)
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        import psycopg

        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def standby_of(primary: Postgres, home: Path) -> Postgres:
    """A streaming replica, started."""
    copy = Postgres(home, primary.bin, free_port())
    primary_place = f"host=127.0.0.1 port={primary.port} user=postgres"
    command = [str(primary.bin / "pg_basebackup"), "-d", primary_place, "-D", str(copy.data), "-R", "-c", "fast", "-N"]
    subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE, **_as_nobody())
    copy.start()
    return copy


@contextmanager
def new_home() -> Iterator[Path]:
    """A folder that the server's user may enter; pytest's own are for one user only."""
    home = Path(tempfile.mkdtemp(prefix="clf-postgres-"))
    try:
        home.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(home, _NOBODY, _NOBODY)
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def a_server(package: str = "pgserver", **settings: str) -> Iterator[Postgres]:
    """Skips where PostgreSQL or psycopg is missing. Args: package: that brings PostgreSQL with pgvector."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'clf-vision[postgres]'")
    installed = _installed(package)
    with new_home() as home:
        server = Postgres(home, _enterable(installed, home) / "bin", free_port())
        command = [str(server.bin / "initdb"), "-D", str(server.data), "-U", "postgres", "-A", "trust", "-N"]
        command += ["--encoding=utf8", "--locale=C"]
        subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE, **_as_nobody())
        access = server.data / "pg_hba.conf"
        access.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + access.read_text())
        try:
            server.start(**settings)
            server.execute("CREATE ROLE guarded LOGIN PASSWORD 'open sesame'")
            yield server
        finally:
            server.stop()


def make(url: str, model: Identity = MODEL, folder: Path = Path()) -> StoreGallery:
    """A gallery, open for writing."""
    from clf_serve.stores.postgres import PostgresStore

    return create_in(PostgresStore, NAME, Place.of(url), model, folder)


def read(url: str, model: Identity | None = None, *, write: bool = False) -> StoreGallery:
    from clf_serve.stores.postgres import PostgresStore

    return open_in(PostgresStore, NAME, Place.of(url), model, write=write)


def _installed(package: str) -> Path:
    spec = find_spec(package)  # which is not imported: that makes folders
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package}, which brings PostgreSQL, is not installed")
    found = Path(spec.submodule_search_locations[0]) / "pginstall"
    if not (found / "bin" / "postgres").exists():
        pytest.skip(f"{package} has no PostgreSQL for this system")
    return found


def _enterable(installed: Path, home: Path) -> Path:
    """The programs where the server's user may run them, which a root's own folders do not let it."""
    if os.geteuid() != 0 or all(each.stat().st_mode & stat.S_IXOTH for each in (installed / "bin").parents):
        return installed
    packages, copied, package = installed.parents[1], home / "programs", installed.parent.name
    for name in (f"{package}.libs", f"{package}/{installed.name}"):  # the libraries are found relative to the programs
        if (packages / name).exists():
            shutil.copytree(packages / name, copied / name, symlinks=True)
    return copied / package / installed.name


def _as_nobody() -> dict[str, Any]:
    """PostgreSQL refuses to be run by root."""
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _children(pid: int) -> list[int]:
    import psutil  # which pgserver needs, too

    return [child.pid for child in psutil.Process(pid).children()]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
