"""Which store a URL opens, and what is said of one that is unknown, broken, or fails in a call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import DIM, MODEL, entries, unit
from shelf_store import Shelf
from store_helpers import install_shelf, make, read

import clf_serve.stores
from clf.errors import ClfError, GalleryError, PluginError
from clf_serve.gallery import Gallery
from clf_serve.place import Place
from clf_serve.stores import Row, State, is_there, list_stores, open_gallery, open_or_create
from clf_serve.stores.opening import open_in

URL = "mine://host/place"


def test_a_plain_path_is_a_folder_and_a_scheme_a_store(tmp_path: Path) -> None:
    for text in ("photos", "./a://b", "/x/y", "c:\\x", "a:b", "s3:/x", str(tmp_path)):
        assert Place.of(text).folder == Path(text) and str(Place.of(text)) == str(Path(text))
    place = Place.of("Mine://host/a/b?table=x")
    assert (place.folder, place.scheme, place.name, place.url) == (None, "mine", "b", "mine://host/a/b?table=x")
    assert Place.of("my_store://x").scheme == "my_store"  # and no folder of that name
    assert Place.of(place) is place and Place.of("mine://").name == "mine"
    assert Place.of(tmp_path).identity == Place.of(tmp_path / "a" / "..").identity
    assert Place.of(tmp_path).notes == tmp_path


def test_a_password_is_not_shown_and_not_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Place.of("postgresql://me:s3cret@host/db?sslmode=on&password=other&x=1")
    assert str(place) == "postgresql://me:***@host/db?sslmode=on&password=***&x=1"
    assert "s3cret" in place.url and place.name == "db"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert place.notes.parent == tmp_path / "clf" / "stores" and "s3cret" not in str(place.notes)
    with pytest.raises(GalleryError, match=r"clf gallery backup is for galleries in folders, and .*\*\*\*@host"):
        place.require_folder("clf gallery backup")


@pytest.mark.parametrize(
    ("url", "shown", "name"),
    [
        ("mine://me:pw@host", "mine://me:***@host", "host"),
        ("mine://me@corp.com:pw@host/db", "mine://me@corp.com:***@host/db", "db"),
        ("mine://me:p@ss/w?rd#1@host:5/db", "mine://me:***@host:5/db", "db"),
        ("mine://:pw@host/db/", "mine://:***@host/db/", "db"),
        ("mine://h/c?api-key=A&keyspace=x&access_token=t", "mine://h/c?api-key=***&keyspace=x&access_token=***", "c"),
        ("mine://h/c?sslpassword=A&author=B;pwd=C", "mine://h/c?sslpassword=***&author=B;pwd=***", "c"),
        ("mine://h/c?password=A#Bcde&x=1", "mine://h/c?password=***&x=1", "c"),
        ("mine://me@host/a:b@c.db", "mine://me@host/a:b@c.db", "a:b@c.db"),
        ("mine:///a:b@c/d.db", "mine:///a:b@c/d.db", "d.db"),
    ],
)
def test_what_looks_like_a_password_is_hidden_wherever_it_stands(url: str, shown: str, name: str) -> None:
    place = Place.of(url)
    assert (str(place), place.name, place.url) == (shown, name, url)
    assert repr(place) == f"Place({shown!r})" and repr([place]) == f"[{place!r}]"
    assert place.hide(f"cannot reach {url} now") == f"cannot reach {shown} now"


def test_a_store_that_tells_the_password_is_not_repeated(tmp_path: Path) -> None:
    class Telling(Shelf):
        said: Any = None

        @classmethod
        def open(cls, url: str, *, write: bool, create: Any = None) -> Any:
            raise cls.said

    place = Place.of("shelf://me:s3%40cret@host/db?api_key=other-key")
    for error in (
        OSError(f"no route to {place.url}"),
        OSError("login of me with s3@cret was refused"),
        GalleryError("the key other-key has expired"),
    ):
        Telling.said = error
        with pytest.raises(GalleryError) as told:
            open_in(Telling, "store 'shelf'", place)
        assert "***" in str(told.value)
        assert not any(secret in str(told.value) for secret in ("s3%40cret", "s3@cret", "other-key"))


def test_a_folder_is_opened_as_ever(tmp_path: Path) -> None:
    with open_or_create(tmp_path / "g", MODEL, tmp_path) as gallery:
        assert isinstance(gallery, Gallery)
    with open_gallery(str(tmp_path / "g")) as gallery:
        assert isinstance(gallery, Gallery) and gallery.place == Place(tmp_path / "g")
    assert is_there(tmp_path / "g") and not is_there(tmp_path / "h")
    with pytest.raises(GalleryError, match="is not a gallery; make one: clf index"):
        open_gallery(tmp_path / "h")


def test_an_installed_store_is_opened_by_its_scheme(install: Callable[..., Path], tmp_path: Path) -> None:
    install_shelf(install)
    url = f"shelf://{tmp_path}/s.db"
    assert not is_there(url)
    with pytest.raises(GalleryError, match="there is no gallery at shelf://"):
        open_gallery(url)
    with open_or_create(url, MODEL, tmp_path / "model") as gallery:
        gallery.upsert(entries(0, 2))
    assert is_there(url)
    with open_or_create(url, MODEL, tmp_path / "moved") as gallery:
        assert len(gallery) == 2 and gallery.model_path == tmp_path / "moved"
    with open_gallery(url, MODEL, write=True) as gallery:
        assert gallery.delete([1]) == 1
    assert ("shelf", "clf-shelf", "available") in [(row.name, row.distribution, row.state) for row in list_stores()]


def test_an_unknown_scheme_names_the_installed_ones(
    install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_shelf(install)
    with pytest.raises(PluginError, match=r"at shelv://\. Did you mean 'shelf'\? Installed: .*shelf://\. A folder is"):
        open_gallery("shelv://x")
    monkeypatch.setattr("clf_serve.stores.installed.list_stores", list)
    with pytest.raises(PluginError, match=r"no installed package keeps galleries at shelv://\. No store is installed"):
        open_gallery("shelv://x")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise SystemExit('bye')", r"stage import: SystemExit: bye \(mine_store.py, line 1\)"),
        ("import no_such_module_at_all", "stage import: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("def Store(:", "stage import: SyntaxError"),
        ("Store = 5", "stage class: mine_store:Store is no subclass of clf_serve.stores.VectorStore"),
        (
            "from clf_serve.stores import VectorStore\nclass Store(VectorStore):\n    pass",
            "does not define find, open, read",
        ),
        (
            "from clf_serve.stores import VectorStore\nclass Store(VectorStore):\n    gallery = dict",
            "Store.gallery is no subclass of clf_serve.stores.StoreGallery",
        ),
        ("other = 1", "stage import: AttributeError"),
    ],
)
def test_a_broken_package_is_named_with_stage_and_remedy(
    install: Callable[..., Path], capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    install(
        "clf-mine",
        entry_points="[clf.indexes]\nmine = mine_store:Store\n",
        modules={"mine_store": f"print('hello')\n{source}"},
    )
    with pytest.raises(PluginError, match=said.replace("line 1", "line 2")) as error:
        open_gallery(URL)
    assert str(error.value).startswith("store 'mine' (clf-mine 1.0) is broken, stage ")
    printed = capsys.readouterr()
    assert printed.out == ""  # standard output is for what programs read
    assert printed.err == ("" if "SyntaxError" in said else "hello\n")


def test_two_packages_with_one_scheme_and_one_for_another_clf_cannot_be_used(install: Callable[..., Path]) -> None:
    points = "[clf.indexes]\nmine = mine_store:Store\n"
    install("clf-mine", entry_points=points)
    install("clf-other", entry_points=points)
    with pytest.raises(PluginError, match=r"store 'mine' .* state conflict: .*also claimed by clf-"):
        open_gallery(URL)
    install("clf-old", entry_points="[clf.indexes]\nold = mine_store:Store\n", requires=["clf-vision<0.0.1"])
    with pytest.raises(PluginError, match=r"store 'old' \(clf-old 1.0\) cannot be used, state incompatible"):
        open_gallery("old://x")


class Faulty(Shelf):
    """Raises, or gives, what it is told to."""

    faults: dict[str, Any] = {}  # noqa: RUF012

    def _given(self, call: str) -> Any:
        fault = self.faults.get(call)
        if isinstance(fault, BaseException):
            raise fault
        return fault

    def state(self) -> Any:
        return self._given("state") or super().state()

    def find(self, keys: Any) -> Any:
        return self._given("find") or super().find(keys)

    def read(self, ids: Any, *, vectors: bool, thumbnails: bool) -> Any:
        return self._given("read") or super().read(ids, vectors=vectors, thumbnails=thumbnails)

    def scan(self, after: int, limit: int, *, vectors: bool, thumbnails: bool) -> Any:
        return self._given("scan") or super().scan(after, limit, vectors=vectors, thumbnails=thumbnails)

    def search(self, vector: Any, k: int, allowed: Any, *, exact: bool) -> Any:
        return self._given("search") or super().search(vector, k, allowed, exact=exact)

    def write(self, put: Any, delete: Any, about: Any, *, at: int) -> None:
        self._given("write")
        super().write(put, delete, about, at=at)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Any]:
    Faulty.faults = {}
    with make(tmp_path / "s.db", store=Faulty) as gallery:
        gallery.upsert(entries(0, 3))
        yield gallery
        Faulty.faults = {}


QUERY = unit(np.random.default_rng(1), 1)[0]
CALLS: dict[str, Callable[[Any], Any]] = {
    "state": len,
    "find": lambda gallery: gallery.find("k1"),
    "read": lambda gallery: gallery.vector(1),
    "scan": lambda gallery: gallery.page(),
    "search": lambda gallery: gallery.search(QUERY, 2),
    "write": lambda gallery: gallery.delete([1]),
}
PICTURE = {"thumbnail": lambda gallery: gallery.thumbnail(1)}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [ConnectionError("the host\nis gone"), SystemExit(3), KeyError("x")])
def test_what_a_call_raises_is_told_by_store_call_and_place(faulty: Any, call: str, error: BaseException) -> None:
    Faulty.faults = {call: error}
    with pytest.raises(GalleryError) as told:
        CALLS[call](faulty)
    kind = type(error).__name__
    assert str(told.value).startswith(f"the store 'shelf' (clf-shelf 1.0) failed in {call}: {kind}: ")
    assert "(test_stores.py, line" in str(told.value) and str(faulty.place) in str(told.value)
    assert "\n" not in str(told.value)
    Faulty.faults = {}
    assert len(faulty) == 3  # it goes on


def test_ctrl_c_and_its_own_words_pass_through(faulty: Any) -> None:
    Faulty.faults = {"scan": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        faulty.page()
    Faulty.faults = {"scan": GalleryError("the database 'x' needs the extension vector")}
    with pytest.raises(GalleryError, match=r"^the database 'x' needs the extension vector$"):
        faulty.page()


GOOD = Row(1, "k", "{}", unit(np.random.default_rng(1), 1)[0])


@pytest.mark.parametrize(
    ("call", "answer", "said"),
    [
        ("state", 7, "failed in state: gave 7"),
        ("state", State(-1, 0, {}), "failed in state: gave State"),
        ("find", {"other": 1}, "gave the key 'other', which was not asked for"),
        ("read", [GOOD, GOOD], "gave a row twice"),
        ("read", [Row(2, "k")], "gave a vector that is not 6 float32 numbers"),
        ("read", [replace(GOOD, vector=list(GOOD.vector))], "gave a vector that is not 6 float32 numbers"),
        ("read", [replace(GOOD, vector=GOOD.vector.astype(np.float64))], "gave a vector that is not 6 float32"),
        ("state", State(None, 1, {}), "failed in state: gave State"),  # type: ignore[arg-type]
        ("state", State(1, 1, {"model": None}), "failed in state: gave State"),  # type: ignore[dict-item]
        ("find", {5: 1}, "gave the key 5, which was not asked for"),
        ("scan", ["x"], "gave a str for a Row"),
        ("scan", [Row(None, "k")], "gave an id that is a NoneType"),  # type: ignore[arg-type]
        ("thumbnail", [replace(GOOD, thumbnail="jpeg")], "gave a thumbnail that is a str and no bytes"),
        ("thumbnail", [replace(GOOD, thumbnail=10**12)], "gave a thumbnail that is a int and no bytes"),
        (
            "read",
            [Row(1, "k", "{}", np.full(DIM, 9, np.float32))],
            "gave a vector that is not 6 float32 numbers of unit length",
        ),
        ("state", State(1, 1, None), "failed in state: gave State"),  # type: ignore[arg-type]
        ("read", ["x"], "gave a str for a Row"),
        ("read", [Row(np.int64(1), "k")], "gave an id that is a int64 and no int"),  # type: ignore[arg-type]
        ("scan", [GOOD], "the facts of row 1 are not those that were written"),
        ("scan", [Row(1, "k", "{")], "the facts of row 1 are no JSON"),
        ("scan", [Row(2, "k"), Row(1, "l")], "with ids that do not rise"),
        ("search", [1, 1], "gave an id twice"),
        ("search", [None], "failed in search: TypeError"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(faulty: Any, call: str, answer: Any, said: str) -> None:
    Faulty.faults = {"read" if call == "thumbnail" else call: answer}
    with pytest.raises(GalleryError, match=said):
        (CALLS | PICTURE)[call](faulty)


def test_an_answer_that_was_not_allowed_is_refused(faulty: Any) -> None:
    from clf_serve.gallery import Where

    for answer, said in (([3], "gave an id that was not allowed"), ([2**70], "failed in search: OverflowError")):
        Faulty.faults = {"search": answer}
        with pytest.raises(GalleryError, match=said):
            faulty.search(QUERY, 2, where=Where.parse({"@id": {"$lt": 3}}))


def test_rows_that_vanish_between_search_and_read_are_left_out(faulty: Any) -> None:
    Faulty.faults = {"search": [1, 2, 3, 77]}
    assert sorted(hit.id for hit in faulty.search(QUERY, 4)) == [1, 2, 3]


def test_a_gallery_of_a_newer_or_damaged_store_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "s.db").close()
    for name, text, said in (
        ("format", "99", "has format 99"),
        ("dim", "x", "dim is no number"),
        ("model", None, "model is"),
    ):
        store = Shelf.open(f"shelf://{tmp_path}/s.db", write=True)
        before = store.db.execute("SELECT text FROM about WHERE name = ?", (name,)).fetchone()[0]
        store.db.execute("DELETE FROM about WHERE name = ?", (name,))
        if text is not None:
            store.db.execute("INSERT INTO about VALUES (?, ?)", (name, text))
        with pytest.raises(GalleryError, match=said):
            read(tmp_path / "s.db")
        store.db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, before))
        store.close()
    read(tmp_path / "s.db").close()


def test_an_open_that_fails_is_told(tmp_path: Path) -> None:
    class Refusing(Shelf):
        @classmethod
        def open(cls, url: str, *, write: bool, create: Any = None) -> Any:
            if create is None:
                return "nothing"
            raise OSError("no route to host")

    with pytest.raises(GalleryError, match=r"failed in open: OSError: no route to host \(test_stores.py"):
        make(tmp_path / "s.db", store=Refusing)
    with pytest.raises(GalleryError, match="failed in open: it gave a str"):
        read(tmp_path / "s.db", store=Refusing)


def test_public_names_exist_and_a_store_needs_no_engine() -> None:
    for name in clf_serve.stores.__all__:
        assert getattr(clf_serve.stores, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clf_serve.stores.nothing  # noqa: B018
    assert issubclass(PluginError, ClfError)
    heavy = {"torch", "faiss", "onnxruntime", "pytest", "PIL"}
    program = f"import sys, clf_serve.stores\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
