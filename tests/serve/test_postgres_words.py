"""URLs of galleries in PostgreSQL, and what is said where something is missing, forbidden, old or out of reach."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gallery_helpers import entries
from postgres_helpers import Postgres, make, read

from clf.errors import ClfError, GalleryError
from clf_serve.place import Place
from clf_serve.stores import NoGalleryError

psycopg = pytest.importorskip("psycopg")

from clf_serve.stores.postgres import PostgresStore, lines, schema  # noqa: E402
from clf_serve.stores.postgres.server import Server  # noqa: E402
from clf_serve.stores.postgres.target import Target  # noqa: E402

SECRET = "sw0rd%2Ffish"


@pytest.mark.parametrize(
    ("url", "name", "settings"),
    [
        ("postgresql://me@host/pets", "clf", {"user": "me", "host": "host", "dbname": "pets"}),
        ("postgres://host/pets?gallery=birds", "birds", {"host": "host", "dbname": "pets"}),
        ("postgresql://h/d?sslmode=require&gallery=a.b-c_1&connect_timeout=3", "a.b-c_1", {"sslmode": "require"}),
        ("postgresql:///d?host=/tmp&gallery=Birds", "Birds", {"host": "/tmp", "dbname": "d"}),
        ("postgresql://a:1,b:2/d?target_session_attrs=any", "clf", {"host": "a,b", "port": "1,2"}),
    ],
)
def test_a_url_is_libpqs_but_for_the_gallerys_name(url: str, name: str, settings: dict[str, str]) -> None:
    target = Target.of(url)
    assert target.schema == name and "gallery" not in target.settings
    assert {key: target.settings.get(key) for key in settings} == settings
    assert target.settings["connect_timeout"] == ("3" if "connect_timeout" in url else "10")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://h/d?gallery=", "'' in .* is no name for a gallery"),
        ("postgresql://h/d?gallery=a%22b", "no name for a gallery"),
        ("postgresql://h/d?gallery=public", "is no name for a gallery"),
        ("postgresql://h/d?gallery=PG_catalog", "is no name for a gallery"),
        ("postgresql://h/d?gallery=" + "a" * 64, "up to 63"),
        ("postgresql://h/d?gallery=a&gallery=b", "more than one gallery"),
        ("postgresql://h/d?galery=a", 'no URL of PostgreSQL: invalid URI query parameter: "galery"'),
        (f"postgresql://me:{SECRET}%@h/d", "no URL of PostgreSQL"),
        ("postgresql://h/d\udce4", "no URL of PostgreSQL: .*surrogates not allowed"),
    ],
)
def test_a_wrong_url_is_refused_in_words(url: str, said: str) -> None:
    with pytest.raises(GalleryError, match=said) as refused:
        make(url)
    assert "sw0rd" not in str(refused.value)


def test_passwords_and_databases_that_are_wrong(postgres: Postgres) -> None:
    url = f"postgresql://guarded:{SECRET}@127.0.0.1:{postgres.port}/postgres"
    for wrong, said in (
        (url, 'password authentication failed for user "guarded"'),
        (f"postgresql://postgres:{SECRET}@127.0.0.1:{postgres.port}/nowhere", 'database "nowhere" does not exist'),
        (f"{url}?host=127.0.0.1&port=1", r"cannot be reached to open the gallery: .*Connection refused\. See"),
    ):
        with pytest.raises(GalleryError, match=said) as refused:
            read(wrong)
        assert "sw0rd" not in str(refused.value) and "~/.pgpass" in str(refused.value)
        assert "\n" not in str(refused.value)
    right = url.replace(SECRET, "open%20sesame")
    with pytest.raises(GalleryError, match=r"there is no gallery at .*guarded:\*\*\*@"):
        read(right)


def test_a_server_that_does_not_answer_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"postgresql://me:{SECRET}@127.0.0.1:{listener.getsockname()[1]}/d?connect_timeout=2"
        with pytest.raises(GalleryError, match=r"cannot be reached to open the gallery: .*timeout expired"):
            read(url)


@pytest.fixture
def role(postgres: Postgres) -> Iterator[str]:
    """A role that may do nothing."""
    postgres.execute("CREATE ROLE humble LOGIN")
    yield "humble"
    postgres.execute("DROP OWNED BY humble CASCADE")
    for (name,) in postgres.execute("SELECT nspname FROM pg_namespace WHERE nspowner = 'humble'::regrole"):
        postgres.execute(f'DROP SCHEMA "{name}" CASCADE')
    with suppress(psycopg.Error):
        postgres.execute("REVOKE ALL ON DATABASE bare FROM humble")
        postgres.execute("DROP DATABASE bare")
    postgres.execute("DROP ROLE humble")


def test_rights_that_are_missing_are_named_with_the_words_that_give_them(postgres: Postgres, role: str) -> None:
    owners, theirs = postgres.url("shared"), postgres.url("shared", user=role)
    make(owners).close()  # and with it the extension
    with pytest.raises(GalleryError, match=r'may not open the gallery .*GRANT USAGE ON SCHEMA "shared" TO ROLE'):
        read(theirs)
    postgres.execute("GRANT USAGE ON SCHEMA shared TO humble")
    postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA shared TO humble")
    with read(theirs) as gallery:
        assert gallery.search(entries(0, 1)[0].vector, 3) == [] and gallery.facts().bytes > 0
    with read(theirs, write=True) as gallery, pytest.raises(GalleryError, match="may not write to the gallery"):
        gallery.upsert(entries(0, 1))
    own = postgres.url("theirs", user=role)
    with pytest.raises(GalleryError, match='CREATE SCHEMA "theirs" AUTHORIZATION ROLE, in the database postgres'):
        make(own)
    postgres.execute("CREATE SCHEMA theirs AUTHORIZATION humble")
    with make(own) as gallery:
        assert len(gallery.upsert(entries(0, 2))) == 2


def test_an_extension_that_is_missing(postgres: Postgres, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres.execute("CREATE DATABASE bare")
    postgres.execute("GRANT CREATE ON DATABASE bare TO humble")
    postgres.execute("ALTER DATABASE bare OWNER TO postgres")
    theirs = postgres.url("g", database="bare", user=role)
    with pytest.raises(GalleryError, match="in the database bare by: CREATE EXTENSION vector"):
        make(theirs)
    assert postgres.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'g'", database="bare") == []

    class Bare:
        def execute(self, text: str) -> None:
            raise psycopg.errors.FeatureNotSupported('extension "vector" is not available')

    with pytest.raises(GalleryError, match=r"pgvector is not installed on the server of .*postgresql-16-pgvector"):
        schema._extend(Bare(), Target.of(theirs), Server(160002))  # type: ignore[arg-type]


def test_a_schema_of_others_is_left_alone(postgres: Postgres) -> None:
    postgres.execute("CREATE SCHEMA shop")
    postgres.execute("CREATE TABLE shop.images (id int)")
    with pytest.raises(GalleryError, match=r"the schema 'shop' of .* holds other things than a gallery"):
        make(postgres.url("shop"))
    with pytest.raises(GalleryError, match="there is no gallery"):
        read(postgres.url("shop"))
    assert postgres.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'shop'::regnamespace") == [(1,)]


def test_servers_and_databases_that_cannot_hold_galleries(postgres: Postgres) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(GalleryError, match=r"has the encoding LATIN1.*ENCODING 'UTF8' TEMPLATE template0"):
        make(postgres.url(database="latin"))
    target, good = Target.of("postgresql://h/d"), Server(160002, extension="0.6.2")
    good.require(target, write=True)
    for server, write, said in (
        (replace(good, version=120017), False, "is PostgreSQL 12, and galleries need 13 or newer"),
        (replace(good, standby=True), True, "standby server, where galleries can be read"),
        (replace(good, read_only=True), True, "read-only for this role"),
    ):
        with pytest.raises(GalleryError, match=said):
            server.require(target, write=write)
    replace(good, standby=True, read_only=True).require(target, write=False)


def test_a_read_only_role_reads(postgres: Postgres) -> None:
    with make(postgres.url("fixed")) as gallery:
        gallery.upsert(entries(0, 3))
    postgres.execute("CREATE ROLE careful LOGIN SUPERUSER")
    postgres.execute("ALTER ROLE careful SET default_transaction_read_only = on")
    url = postgres.url("fixed", user="careful")
    with pytest.raises(GalleryError, match="default_transaction_read_only is on"):
        read(url, write=True)
    with read(url) as gallery:
        assert len(gallery) == 3


def test_a_handle_for_reading_changes_nothing(postgres: Postgres) -> None:
    url = postgres.url()
    make(url).close()
    store = PostgresStore.open(url, write=False)
    with pytest.raises(GalleryError, match=r"is read-only .*name the primary server"):
        store.write([], [], {}, at=0)
    assert store.state().generation == 0
    store.close()
    with pytest.raises(GalleryError, match="was closed"):
        store.state()


def test_tables_of_a_newer_clf_and_lost_ones(postgres: Postgres) -> None:
    url = postgres.url("newer")
    make(url).close()
    postgres.execute("UPDATE newer.clf_gallery SET format = 2")
    with pytest.raises(GalleryError, match="have format 2, this clf reads up to 1; use the clf that made them"):
        read(url)
    postgres.execute("DELETE FROM newer.clf_gallery")
    with pytest.raises(GalleryError, match="has lost its own row; restore it from a backup"):
        read(url)


def test_a_pooler_that_mixes_up_connections_is_found_out(postgres: Postgres) -> None:
    """In transaction mode a connection has been set up by any client, perhaps for another gallery."""
    with make(postgres.url("ours")) as ours, make(postgres.url("others")) as others:
        store: Any = ours.calls.store
        with store.lines.one() as line:
            line.execute("SET search_path TO others, public")
        for work in (lambda: len(ours), lambda: store.write([], [], {}, at=0)):
            with pytest.raises(GalleryError, match=r"gives one connection to several clients.*pool_mode is session"):
                work()
        assert others.generation == 0


def test_limits_of_time(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.url("slow")
    with make(url) as gallery:
        store: Any = gallery.calls.store
        assert store.lines.server.limit == lines.STATEMENT
        gallery.upsert(entries(0, 1))
    limited = f"{url}&options=-cstatement_timeout%3D100ms%20-clock_timeout%3D100ms"
    with read(limited, write=True) as gallery:
        store = gallery.calls.store
        assert store.lines.server.limit == 0.1
        with pytest.raises(GalleryError, match=r"the server broke off .*statement timeout.* what was to wait"):
            store.rows("wait", "SELECT pg_sleep(10)")
        where = {"host": "127.0.0.1", "port": postgres.port, "user": "postgres", "dbname": "postgres"}
        with psycopg.connect(**where) as other:
            other.execute("SELECT 1 FROM slow.clf_gallery FOR UPDATE")
            with pytest.raises(
                GalleryError, match=r"others held what was needed to write to the gallery too long|broke"
            ):
                gallery.upsert(entries(1, 1))
        gallery.upsert(entries(1, 1))
        assert len(gallery) == 2


def test_what_the_server_says_in_its_own_words_is_told_with_the_stores_name(postgres: Postgres) -> None:
    url = f"postgresql://postgres:{SECRET}@127.0.0.1:{postgres.port}/postgres?gallery=torn"
    with make(url) as gallery:
        gallery.upsert(entries(0, 1))
        postgres.execute("ALTER TABLE torn.images RENAME COLUMN facts TO other")
        with pytest.raises(GalleryError, match=r"store 'postgresql' .* failed in read: UndefinedColumn") as failed:
            gallery.items([1])
        assert "sw0rd" not in str(failed.value)


def test_no_module_of_the_embedded_default_imports_psycopg() -> None:
    import subprocess
    import sys

    program = "import sys, clf_serve.stores, clf_serve.commands.gallery; print('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_places_of_postgresql_show_no_password(tmp_path: Path) -> None:
    place = Place.of(f"postgresql://me:{SECRET}@h/d?gallery=birds")
    assert str(place) == "postgresql://me:***@h/d?gallery=birds"
    assert "sw0rd/fish" not in place.hide("no role for sw0rd/fish")
    assert issubclass(NoGalleryError, ClfError)
