"""``clf search``. Heavy packages are imported inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clf.errors import DataError, GalleryError
from clf_serve.commands.options import AsJson, Gallery, Provider, ProviderOption, Variant, VariantOption, open_engine
from clf_serve.commands.terminal import console, print_json

if TYPE_CHECKING:
    from clf_serve.backends.base import Vectors
    from clf_serve.gallery import Hit
    from clf_serve.index import IndexInfo
    from clf_serve.stores import AnyGallery

_MOST = 1000
"""Hits of a search by ``--min-score``, unless ``-k`` says otherwise."""
_LIKE, _UNLIKE = 1.0, -0.5
"""Weights of each image; those of the HTTP API."""


def search(
    gallery: Gallery,
    image: Annotated[Path | None, typer.Argument(help="The image to look for.", show_default=False)] = None,
    like: Annotated[
        list[Path] | None, typer.Option(help="One more image to look for; may be repeated.", show_default=False)
    ] = None,
    unlike: Annotated[
        list[Path] | None, typer.Option(help="An image to keep away from; may be repeated.", show_default=False)
    ] = None,
    id_: Annotated[
        list[int] | None,
        typer.Option("--id", help="An image of the gallery to look for; may be repeated.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder made by clf export; by default the one the gallery was made with.")
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("--neighbours", "-k", min=1, max=10_000, help="Number of neighbours; 10.", show_default=False),
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="Pass over so many of the best.")] = 0,
    min_score: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="All images with at least this cosine, up to 1000.", show_default=False),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="""Filter by metadata, JSON: '{"year": {"$gte": 2020}}'.""", show_default=False),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every image, whatever the index is.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures to this file.")] = None,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    as_json: AsJson = False,
) -> None:
    """Find the images of a gallery that are most like one image, or like several and unlike others."""
    from clf_serve.gallery import Where
    from clf_serve.stores import open_gallery

    condition = Where.parse_text(where) if where is not None else None
    wanted, unwanted, ids = [*([image] if image else []), *(like or ())], unlike or [], id_ or []
    if not wanted and not ids:
        raise DataError("there is nothing to look for; name an image, or one of the gallery by --id")
    with open_gallery(gallery) as opened:
        query = _query(opened, wanted, unwanted, ids, model or opened.model_path, provider, variant)
        if min_score is None:
            hits = opened.search(query, k or 10, where=condition, but=ids, offset=offset, exact=exact)
        else:
            limit = k or _MOST
            hits = opened.within(query, min_score, limit=offset + limit, where=condition, but=ids)[offset:]
        if opened.cache_note:
            console(stderr=True).print(opened.cache_note)
        index = opened.facts().index
        approximate = not (exact or index is None or index.exact)
        if html is not None:
            _write_page(html, wanted[0] if wanted else ids[0], opened, hits)
    if as_json:
        rows = [{"id": hit.id, "uri": hit.uri, "score": hit.score, "metadata": hit.metadata} for hit in hits]
        asked = [str(path) for path in wanted] + ids
        about = {"exact": not approximate, "recall": index.recall if approximate and index is not None else None}
        print_json({"query": asked[0] if len(asked) == 1 else asked, "hits": rows, "index": about})
        return
    _print_table(hits, filtered=condition is not None or min_score is not None or offset > 0, first=offset + 1)
    if approximate and index is not None:
        console(stderr=True).print(_recall(index))


def _query(
    gallery: AnyGallery,
    wanted: Sequence[Path],
    unwanted: Sequence[Path],
    ids: Sequence[int],
    model: Path,
    provider: Provider,
    variant: Variant,
) -> Vectors:
    """The direction to look in: the sum of what is wanted, less half of what is not (Rocchio 1971)."""
    from clf_serve.combine import combine
    from clf_serve.gallery import Identity

    vectors = []
    for id_ in ids:
        vector = gallery.vector(id_)
        if vector is None:
            raise GalleryError(f"the gallery {gallery.place} has no image with the id {id_}; clf search shows ids")
        vectors.append(vector)
    paths = [*wanted, *unwanted]
    if paths:
        engine = open_engine(model, provider, variant, warm_up=False)
        gallery.require(Identity.of(engine.manifest))
        vectors += [engine.embed(engine.prepare(path)[None])[0] for path in paths]
    weights = [_LIKE] * (len(ids) + len(wanted)) + [_UNLIKE] * len(unwanted)
    try:
        return combine(vectors, weights)
    except ValueError as error:
        raise DataError(f"{error}; name fewer images, or others") from error


def _recall(index: IndexInfo) -> str:
    known = "not measured yet" if index.recall is None else f"{index.recall:.3f}, measured on {index.queries} queries"
    return f"approximate index ({index.kind}): recall@{index.recall_k} {known}; --exact compares with every image"


def _print_table(hits: Sequence[Hit], filtered: bool, first: int) -> None:
    from rich.table import Table
    from rich.text import Text

    if not hits:
        console().print("no image of the gallery is like that" if filtered else "the gallery is empty")
        return
    table = Table("rank", "score", "id", "image", box=None, header_style="bold")
    for rank, hit in enumerate(hits, first):
        table.add_row(str(rank), f"{hit.score:.4f}", str(hit.id), Text(hit.uri))
    console().print(table)


def _write_page(path: Path, query: Path | int, gallery: AnyGallery, hits: Sequence[Hit]) -> None:
    from clf import images
    from clf_serve.report import result_page
    from clf_serve.sync.thumbnails import thumbnail

    def small(id_: int) -> bytes:
        stored = gallery.thumbnail(id_)
        return stored.data if stored else b""

    if isinstance(query, int):
        item = gallery.get(query)
        name, picture = item.uri if item else str(query), small(query)
    else:
        name, picture = str(query), thumbnail(images.decode(query))
    about = f"{len(hits)} nearest of {len(gallery)} images in {gallery.place}, by {gallery.model}"
    page = result_page(name, picture, [(hit, small(hit.id)) for hit in hits], about)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
