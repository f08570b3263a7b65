"""What the server does, without HTTP: several models at work side by side, each replaced without a lost call."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from clf.errors import ClfError, ServeError, did_you_mean
from clf_serve.deployment import Deployment, Opened, Source, warm_up_or_log
from clf_serve.gallery_memory import Memory
from clf_serve.ingest import Ingest
from clf_serve.limits import Budget, ServeLimits
from clf_serve.lookups import Lookups
from clf_serve.metrics import Metrics
from clf_serve.priority import full_pool, give_way
from clf_serve.problems import Problem, draining
from clf_serve.runtime import usable_cores
from clf_serve.stores import AnyGallery
from clf_serve.worker import Worker
from clf_serve.writing import Writer

_log = logging.getLogger(__name__)
_RELOAD = 600.0  # seconds that a model may take to open and warm up again


class Service:
    """Models, each with its engine and perhaps a gallery; the API and the page share it. Belongs to one event loop.

    Args:
        sources: one for each model; opened at once, and again at each reload. The first is served where none is named.
        metrics: where to count; by default in metrics of its own.

    Raises:
        ClfError: one of them cannot be opened, or two have the same name.
    """

    def __init__(
        self, sources: Sequence[Source], limits: ServeLimits | None = None, metrics: Metrics | None = None
    ) -> None:
        if not sources:
            raise ServeError("a server needs a model; give a folder made by clf export")
        self.limits = limits or ServeLimits()
        self.metrics = metrics or Metrics()
        self.memory = Memory()
        self.budget = Budget(self.limits.max_bytes_together)
        self.draining = asyncio.Event()
        """Set once the server is to take no more requests."""
        self.leaving = False
        """Whether it is not ready because it will end soon, although it still takes requests."""
        opened = _open_all(sources)
        self._decoders = full_pool(usable_cores(), "clf-decode", give_way)
        self._lookups = Lookups(self.limits, self.metrics)
        self.models = {name: self._deployed(each) for name, each in opened.items()}
        self._writers: dict[str, Writer] = {}
        """By the identity of the gallery's place."""
        self._names = public_names({name: each.gallery for name, each in opened.items() if each.gallery is not None})
        self._sources = dict(zip(opened, sources, strict=True))
        self._warm_up: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._asked_again = False
        self.also_reload: list[Callable[[], None]] = []
        """What else is read again at a reload (keys, a certificate); a ClfError of it is logged, and the old stays."""

    @property
    def galleries(self) -> dict[str, Deployment]:
        """The models that have a gallery, by its public name: that of its folder."""
        return {name: self.models[model] for model, name in self._names.items()}

    def gallery_name(self, deployment: Deployment) -> str:
        """The public name of its gallery. Raises Problem 404 when it has none."""
        deployment.require_gallery()
        return self._names[deployment.name]

    @contextmanager
    def using_gallery(self, name: str) -> Iterator[Deployment]:
        """The model of a gallery, as :meth:`using`.

        Raises:
            Problem: 404 there is no such gallery; 503 the server is shutting down.
        """
        self.check_gallery(name)
        with self.using(self.galleries[name].name) as deployment:
            yield deployment

    def check_gallery(self, name: str) -> None:
        """Raises Problem 404 when there is no gallery of this name."""
        if name not in self.galleries:
            here = ", ".join(map(repr, self.galleries)) or "none"
            text = f"the gallery {name[:80]!r} is not here; there is {here}.{did_you_mean(name[:80], self.galleries)}"
            raise Problem(404, "gallery_not_found", text, param="gallery")

    def ingest(self, deployment: Deployment) -> Ingest:
        """What changes its gallery.

        Raises:
            Problem: 403 galleries are not to be changed here; 404 it has none.
        """
        gallery = deployment.require_gallery()
        self.check_writable()
        place = gallery.place
        writer = self._writers.setdefault(place.identity, Writer(place))
        return Ingest(self._names[deployment.name], deployment, writer, self.limits, self.metrics)

    @property
    def default(self) -> Deployment:
        """The first model."""
        return next(iter(self.models.values()))

    async def start(self) -> None:
        """Starts the batchers, and warms the models up in the background: not ready until then."""
        for deployment in self.models.values():
            deployment.start()
        self._warm_up = asyncio.create_task(self._warm_all(), name="clf-warm-up")

    async def stop(self) -> None:
        self.draining.set()
        if self._warm_up is not None:
            self._warm_up.cancel()
            await asyncio.wait([self._warm_up])
        async with self._reloading:  # one that has begun gives up
            pass
        await asyncio.gather(*(writer.close() for writer in self._writers.values()))
        await asyncio.gather(*(deployment.stop() for deployment in self.models.values()), *self._retiring)
        self._lookups.close()
        self._decoders.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def using(self, name: str | None = None) -> Iterator[Deployment]:
        """A model, by default the first, which stays open until the block ends even when a reload replaces it.

        Raises:
            Problem: 404 there is no such model; 503 the server is shutting down.
        """
        if self.draining.is_set():
            raise draining()
        deployment = self.default if name is None else self.models.get(name)
        if deployment is None:
            here = ", ".join(map(repr, self.models))
            text = f"the model {name!r} is not here; there is {here}.{did_you_mean(str(name), self.models)}"
            raise Problem(404, "model_not_found", text, param="model")
        deployment.enter()
        try:
            yield deployment
        finally:
            deployment.leave()

    def check_writable(self) -> None:
        """Raises Problem 403 when galleries are not to be changed here."""
        if not self.limits.writable:
            text = "galleries cannot be changed here; the server has to be started with --writable"
            raise Problem(403, "gallery_read_only", text)

    async def measure_galleries(self) -> None:
        """Brings the gauges of all galleries up to date."""
        facts = {}
        for name, deployment in self.galleries.items():
            if not deployment.warm:  # its index may take minutes to be read
                continue
            gallery = deployment.require_gallery()
            try:
                known = await asyncio.to_thread(self.memory.facts, gallery)
            except ClfError:  # its searches say why
                continue
            facts[name] = (known.images, None if known.index is None else known.index.recall)
        self.metrics.galleries(facts)

    def check_room(self, deadline: float = math.inf) -> None:
        """Refuses a request at the door, before its body is read, when no model would take a single image.

        Raises:
            Problem: 429; 503 when the models are warming up or broken, or the server is shutting down.
        """
        if self.draining.is_set():
            raise draining()
        refusal: Problem | None = None
        for deployment in self.models.values():
            try:
                deployment.check_room(deadline)
            except Problem as problem:
                refusal = refusal or problem
            else:
                return
        try:
            if refusal is not None:
                raise refusal
        finally:
            del refusal  # or it would keep this frame by its traceback, and the frame keep it, until a collection

    @property
    def alive(self) -> bool:
        """Whether the process is worth keeping."""
        return all(deployment.batcher.alive for deployment in self.models.values())

    async def ready(self) -> str | None:
        """None when requests will be answered, else the reason why not. Idle models are put to the test."""
        reason = await self._why_not_ready()
        self.metrics.ready.set(reason is None)
        return reason

    async def reload(self, name: str | None = None) -> dict[str, str | None]:
        """Opens models and their galleries again and puts them in the place of the old ones, whose calls are finished.

        A new one takes over when it is warm. What cannot be opened, or does not work, is left as it was.

        Args:
            name: of one model; by default all.

        Returns:
            For each model None, or why it was not reloaded.

        Raises:
            Problem: 404 there is no such model; 503 the server is shutting down.
        """
        with self.using(name):
            names = list(self.models) if name is None else [name]
        async with self._reloading:
            return await self._reload(names)

    async def reload_all(self) -> None:
        """:meth:`reload` for a signal, which hears no answer; the log says what became of it.

        Any number of signals while a reload is going on make one more.
        """
        if self._asked_again or self.draining.is_set():
            return
        self._asked_again = True
        async with self._reloading:
            self._asked_again = False
            await self._reload(list(self.models))

    async def _reload(self, names: Sequence[str]) -> dict[str, str | None]:
        if self._warm_up is not None:  # or the old one would be closed in the middle of it
            await asyncio.wait([self._warm_up])
        for again in self.also_reload:
            try:
                await asyncio.to_thread(again)
            except ClfError as error:
                _log.error("%s; the old one stays in use", error)
            except Exception:
                _log.exception("something was not read again; the old one stays in use")
        return {name: await self._replace(name) for name in names}

    async def _replace(self, name: str) -> str | None:
        if self.draining.is_set():
            return "shutting down"
        work = asyncio.ensure_future(self._opened_again(name))
        ending = asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait({work, ending}, timeout=_RELOAD, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return self._not_reloaded(name, "shutting down" if ending.done() else f"not warm after {_RELOAD:g} s")
            new = work.result()
        except ClfError as error:
            return self._not_reloaded(name, str(error))
        except Exception:
            _log.exception("the model %r could not be opened again", name)
            return self._not_reloaded(name, "an error in the server; see its log")
        finally:
            ending.cancel()
            work.cancel()
            await asyncio.wait([work])
        old, self.models[name] = self.models[name], new
        for writer in self._writers.values():
            writer.release()
        task = asyncio.create_task(old.retire(self.limits.timeout), name="clf-retire")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        self.metrics.reloaded("reloaded")
        _log.info("the model %r was reloaded", name)
        return None

    async def _opened_again(self, name: str) -> Deployment:
        """At work. Raises ClfError; nothing of it stays open then, nor when it is cancelled."""
        aside = Worker("clf-open")  # a file system that hangs must not hold up the end of the process
        try:
            opened = await aside(self._sources[name].open)
        finally:
            await aside.close(0)
        if opened.engine is self.models[name].engine:
            raise ServeError("it does not come from a folder")
        now = opened.engine.manifest.name
        if now != name:
            opened.close()
            raise ServeError(f"the folder holds the model {now!r} now; restart the server")
        new = self._deployed(opened)
        new.start()
        try:
            await new.warm_up()
        except BaseException:
            await new.stop()
            raise
        return new

    def _deployed(self, opened: Opened) -> Deployment:
        return Deployment(opened, self.limits, self.metrics, self._decoders, self._lookups)

    def _not_reloaded(self, name: str, reason: str) -> str:
        self.metrics.reloaded("refused")
        _log.error("the model %r was not reloaded and goes on as it was: %s", name, reason)
        return reason

    async def _warm_all(self) -> None:
        for deployment in list(self.models.values()):
            await warm_up_or_log(deployment)

    async def _why_not_ready(self) -> str | None:
        if self.leaving or self.draining.is_set():
            return "shutting down"
        for name, deployment in list(self.models.items()):
            if reason := await deployment.why_not_ready():
                return reason if len(self.models) == 1 else f"{name}: {reason}"
        return None


def public_names(galleries: Mapping[str, AnyGallery]) -> dict[str, str]:
    """What each gallery is called in URLs, by its model: the name of its folder, made unique by that of the model."""
    folders = {model: readable(gallery.name) or "gallery" for model, gallery in galleries.items()}
    counts = Counter(folders.values())
    names: dict[str, str] = {}
    for model, folder in folders.items():
        name = base = folder if counts[folder] == 1 else f"{folder}-{readable(model)}"
        number = 2
        while name in names.values() or (name != folder and name in counts):
            name, number = f"{base}-{number}", number + 1
        names[model] = name
    return names


def readable(name: str) -> str:
    """As it can stand in a URL's path: valid Unicode, without slashes and control characters."""
    text = name.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() and letter not in "/\\?#%" else "_" for letter in text)


def _open_all(sources: Sequence[Source]) -> dict[str, Opened]:
    """By name. Raises ClfError; nothing stays open then."""
    opened: dict[str, Opened] = {}
    try:
        for source in sources:
            each = source.open()
            name = each.engine.manifest.name
            if name in opened:
                each.close()
                raise ServeError(f"two models are called {name!r}; export one from a run of another name")
            opened[name] = each
    except BaseException:
        for each in opened.values():
            each.close()
        raise
    return opened
