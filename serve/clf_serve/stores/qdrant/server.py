"""The few requests to Qdrant that a gallery is made of, each with a time limit, and their errors in sentences.

Writes wait until they are applied, and go through the leader of the replicas, so that conditions are weighed one
after another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from clf.errors import GalleryError
from clf_serve.stores.qdrant.address import FORM, KEY_VARIABLE, Address
from clf_serve.stores.qdrant.points import INDEXED, LEDGER, VECTOR

OLDEST = (1, 16)
"""Version of Qdrant that has conditional updates."""
_STRONG = models.WriteOrdering.STRONG


class MissingError(GalleryError):
    """There is no such collection."""


class Server:
    """One collection of a Qdrant. Thread-safe. All methods raise GalleryError.

    Args:
        client: as :func:`connect` makes it.
    """

    def __init__(self, client: QdrantClient, address: Address) -> None:
        self._client = client
        self._address = address
        self._name = address.collection

    def close(self) -> None:
        self._client.close()

    def check_version(self) -> None:
        """Raises GalleryError: it is no Qdrant, or one that is too old."""
        try:
            with self._told():
                version = str(self._client.info().version)
        except MissingError:
            version = ""
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is None:
            raise GalleryError(f"what answers at {self._address.server} is no Qdrant; the URL is {FORM}")
        if tuple(map(int, numbers.groups())) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise GalleryError(
                f"the Qdrant at {self._address.server} is {version}; a gallery needs {oldest} or newer, which changes "
                "points on a condition"
            )

    def collection(self) -> models.CollectionInfo | None:
        """None: there is none."""
        try:
            with self._told():
                return self._client.get_collection(self._name)
        except MissingError:
            return None

    def create_collection(self, dim: int) -> None:
        """Unless somebody else has just made it."""
        vectors = {VECTOR: models.VectorParams(size=dim, distance=models.Distance.DOT)}
        try:
            with self._told():
                self._client.create_collection(self._name, vectors_config=vectors, timeout=self._address.timeout)
        except GalleryError as error:
            if "already exists" not in str(error):
                raise

    def create_indexes(self) -> None:
        for name, schema in INDEXED.items():
            with self._told():
                self._client.create_payload_index(self._name, name, schema, wait=True, ordering=_STRONG)

    def insert_ledger(self, payload: dict[str, Any]) -> None:
        """Unless there is one."""
        absent = models.Filter(must_not=[models.HasIdCondition(has_id=[LEDGER])])
        point = models.PointStruct(id=LEDGER, vector={}, payload=payload)
        self._update(
            lambda: self._client.upsert(self._name, [point], update_filter=absent, wait=True, ordering=_STRONG)
        )

    def ledger(self) -> dict[str, Any] | None:
        """The payload of its point; None: there is none."""
        with self._told():
            found = self._client.retrieve(self._name, [LEDGER], with_payload=True, with_vectors=False)
        return (found[0].payload or {}) if found else None

    def upsert(self, points: Sequence[models.PointStruct]) -> None:
        self._update(lambda: self._client.upsert(self._name, list(points), wait=True, ordering=_STRONG))

    def set_payload(self, payload: dict[str, Any], where: models.Filter) -> None:
        """Of the points that pass the filter at the moment when they are changed; there may be none."""
        self._update(lambda: self._client.set_payload(self._name, payload, where, wait=True, ordering=_STRONG))

    def delete(self, where: models.Filter) -> None:
        chosen = models.FilterSelector(filter=where)
        self._update(lambda: self._client.delete(self._name, chosen, wait=True, ordering=_STRONG))

    def count(self, where: models.Filter) -> int:
        with self._told():
            return self._client.count(self._name, where, exact=True, timeout=self._address.timeout).count

    def scroll(
        self, where: models.Filter, limit: int, *, start: str | None, payload: list[str], vectors: bool
    ) -> tuple[list[Any], str | None]:
        """Points by rising id from ``start`` on, and where the next page begins. Args: payload: the wanted fields."""
        with self._told():
            found, after = self._client.scroll(
                self._name,
                where,
                limit=limit,
                offset=start,
                with_payload=payload or False,
                with_vectors=[VECTOR] if vectors else False,
                timeout=self._address.timeout,
            )
        return list(found), None if after is None else str(after)

    def query(self, vector: list[float], where: models.Filter, k: int, *, exact: bool) -> list[tuple[str, float]]:
        """Ids of points and scores, best first."""
        with self._told():
            found = self._client.query_points(
                self._name,
                vector,
                using=VECTOR,
                query_filter=where,
                limit=k,
                search_params=models.SearchParams(exact=exact),
                with_payload=False,
                timeout=self._address.timeout,
            )
        return [(str(point.id), point.score) for point in found.points]

    def _update(self, send: Callable[[], Any]) -> None:
        """Every change of points goes through here."""
        with self._told():
            send()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UnexpectedResponse as error:
            if error.status_code == 404:
                raise MissingError(f"there is no collection {self._name} at {self._address.server} any more") from error
            raise self._refused(error) from error
        except ResourceExhaustedResponse as error:
            raise GalleryError(
                f"the Qdrant at {self._address.server} takes no more requests for now ({error.message.rstrip('.')}); "
                f"try again in {error.retry_after_s} s"
            ) from error
        except (ResponseHandlingException, httpx.HTTPError, json.JSONDecodeError, ValidationError) as error:
            raise self._unreachable(error) from error

    def _refused(self, error: UnexpectedResponse) -> GalleryError:
        if error.status_code in (401, 403):
            what = "refuses the API key" if self._address.key else "wants an API key"
            return GalleryError(
                f"the Qdrant at {self._address.server} {what}; write ?api_key=KEY into the URL, or set {KEY_VARIABLE}"
            )
        said = _words(error).rstrip(". ") or "no reason"
        return GalleryError(f"the Qdrant at {self._address.server} refused a request ({error.status_code}): {said}")

    def _unreachable(self, error: Exception) -> GalleryError:
        cause = error.source if isinstance(error, ResponseHandlingException) else error
        if isinstance(cause, ValidationError | ValueError):
            return GalleryError(f"what answers at {self._address.server} is no Qdrant; the URL is {FORM}")
        if isinstance(cause, httpx.TimeoutException) and not isinstance(cause, httpx.ConnectTimeout):
            seconds = self._address.timeout
            return GalleryError(
                f"the Qdrant at {self._address.server} did not answer within {seconds} s; ?timeout=SECONDS allows more"
            )
        reason = " ".join(str(cause).split()) or type(cause).__name__
        return GalleryError(
            f"no Qdrant can be reached at {self._address.server} ({reason}); start it, or mend the URL "
            f"{self._address.place}"
        )


def connect(address: Address) -> Server:
    """Sends nothing yet. Raises GalleryError: there can be no such host."""
    # as a header of ours, since the client warns of a key that goes to this machine unencrypted
    headers = {"api-key": address.key} if address.key else None
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=8)
    try:
        client = QdrantClient(
            url=address.server, timeout=address.timeout, headers=headers, check_compatibility=False, limits=limits
        )
    except ValueError as error:
        raise GalleryError(f"{address.place} names no host ({error}); write {FORM}") from error
    return Server(client, address)


def _words(error: UnexpectedResponse) -> str:
    """What Qdrant says, without its JSON."""
    try:
        said = json.loads(error.content)["status"]["error"]
    except (ValueError, KeyError, TypeError):
        said = error.content.decode("utf-8", "replace")
    return " ".join(str(said).split())[:500]
