"""JSON Schemas of what ``/v1/galleries`` takes and gives, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, TypeAlias

from clf_serve.gallery.filters import FACTS, MAX_CHOICES, MAX_DEPTH, MAX_TESTS, MAX_TEXT
from clf_serve.gallery.metadata import MAX_BYTES
from clf_serve.gallery.metadata import MAX_DEPTH as LEVELS
from clf_serve.http.gallery_bodies import LONGEST_KEY, MOST_IDS
from clf_serve.http.gallery_queries import DEEPEST, MOST_TERMS
from clf_serve.http.schemas import written

Schema: TypeAlias = dict[str, Any]

ID: Schema = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_WORDS: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_TEXT: Schema = {
    "type": ["string", "null"],
    "minLength": 1,
    "maxLength": LONGEST_KEY,
    "pattern": r"^[^\x00-\x1f\x7f]*$",
}
_LINE: Schema = {**_TEXT, "type": "string"}
FILTER_TEXT: Schema = {"type": "string", "format": "filter-json", "contentMediaType": "application/json"}
_OBJECT_TEXT: Schema = {"type": "string", "format": "object-json", "contentMediaType": "application/json"}
_FILE: Schema = {"type": "string", "format": "binary"}
_METADATA: Schema = {
    "type": ["object", "null"],
    "description": f"A JSON object of up to {MAX_BYTES // 1024} KiB, {LEVELS} levels deep.",
}
_CHARACTERS: Schema = {"type": "string", "maxLength": MAX_TEXT, "pattern": r"^[^\x00]*$"}
_WHERE: Schema = {"anyOf": [{"$ref": "#/components/schemas/Filter"}, {"type": "null"}]}


def gallery_schemas(dims: set[int], most_images: int, most_neighbours: int) -> dict[str, Schema]:
    """Args: dims: of the galleries that are served."""
    return {
        **_filter(),
        **_requests(dims, most_images, most_neighbours),
        **_replies(),
    }


def _filter() -> dict[str, Schema]:
    number: Schema = {"type": "number", "minimum": -(2**63), "maximum": 2**63 - 1}
    scalar: Schema = {"anyOf": [_CHARACTERS, number, {"type": ["boolean", "null"]}]}
    ordered: Schema = {"anyOf": [_CHARACTERS, number]}
    operators: dict[str, Schema] = dict.fromkeys(("$eq", "$ne", "$contains"), scalar)
    operators |= dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), ordered)
    choices: Schema = {"type": "array", "maxItems": MAX_CHOICES, "items": scalar}
    operators |= dict.fromkeys(("$in", "$nin"), choices)
    operators |= {"$exists": {"type": "boolean"}, "$prefix": _CHARACTERS}
    test: Schema = {"type": "object", "minProperties": 1, "properties": operators, "additionalProperties": False}
    condition: Schema = {"anyOf": [*scalar["anyOf"], test]}
    several: Schema = {"type": "array", "minItems": 1, "items": _ref("Filter")}
    return {
        "Filter": {
            "type": "object",
            "description": "Which images, by metadata and by facts of the image (names with @); several names are "
            'and-ed. {"label": "cat", "year": {"$gte": 2020}}. camera.iso reaches into an object. Conditions may lie '
            f"in each other {MAX_DEPTH} deep, with {MAX_TESTS} tests in all.",
            "properties": {"$and": several, "$or": several, "$not": _ref("Filter"), **dict.fromkeys(FACTS, condition)},
            "patternProperties": {r"^[^$@\x00][^\x00]*$": condition},
            "additionalProperties": False,
        }
    }


def _requests(dims: set[int], most_images: int, most: int) -> dict[str, Schema]:
    size = {"minItems": min(dims), "maxItems": max(dims)} if len(dims) == 1 else {}
    vector: Schema = {
        "type": "array",
        "items": _NUMBER,
        "contains": {"type": "number", "not": {"const": 0}},
        "description": "As long as the model's embeddings; brought to unit length.",
        **size,
    }
    image: Schema = {"anyOf": [_ref("ImageText"), _ref("ImageObject")]}
    queries: dict[str, Schema] = {
        "image": image,
        "vector": vector,
        "id": {**ID, "description": "Of an image of the gallery, which is left out of the hits."},
    }
    new = {"key": _TEXT, "uri": _TEXT, "metadata": _METADATA}
    weight: Schema = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1000}
    terms: Schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": MOST_TERMS // 2,
        "items": {
            "anyOf": [
                queries["id"],
                {
                    "type": "object",
                    "properties": {**queries, "weight": weight},
                    "additionalProperties": False,
                    "oneOf": [{"required": [name]} for name in queries],
                },
            ]
        },
        "description": "Ids, or objects of an image, a vector or an id with a weight: 1 for like and 0.5 for unlike by "
        "default. What is searched for is their weighted sum.",
    }
    options = _options(most)
    return {
        "NewImages": _closed(
            {
                "images": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": most_images,
                    "items": {
                        "type": "object",
                        "properties": {"image": image, "vector": vector, **new},
                        "additionalProperties": False,
                        "oneOf": [{"required": ["image"]}, {"required": ["vector"]}],
                    },
                }
            }
        ),
        "NewImagesForm": {
            "type": "object",
            "description": "Files under any names. key, uri and metadata (JSON) once for each file, or images: a JSON "
            "list of objects with these three.",
            "required": ["file"],
            "properties": {"file": _FILE, "key": _LINE, "uri": _LINE, "metadata": _OBJECT_TEXT, "images": _OBJECT_TEXT},
            "additionalProperties": False,
        },
        "MetadataPatch": _closed({"metadata": {**_METADATA, "description": "A JSON merge patch (RFC 7396)."}}),
        "Deletion": {
            "type": "object",
            "properties": {
                "ids": {"type": "array", "maxItems": MOST_IDS, "items": {**ID, "minimum": -(2**63)}},
                "where": _ref("Filter"),
                "confirm": {
                    **_COUNT,
                    "description": "How many images you expect to match where; else none is deleted.",
                },
            },
            "additionalProperties": False,
            "oneOf": [
                {"required": ["ids"], "properties": {"where": {"type": "null"}}},
                {"required": ["where", "confirm"], "properties": {"ids": {"type": "null"}}},
            ],
        },
        "GallerySearchRequest": {
            "type": "object",
            "description": "One of image, vector and id; or like or unlike, with or without one of them.",
            "properties": {**queries, "like": terms, "unlike": terms, **options},
            "additionalProperties": False,
            "anyOf": [
                {"oneOf": [{"required": [name]} for name in queries]},
                *({"required": [side], "properties": dict.fromkeys(queries, False)} for side in ("like", "unlike")),
            ],
        },
        "GallerySearchForm": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": _FILE,
                "where": FILTER_TEXT,
                **{name: written(options[name]) for name in ("k", "offset", "min_score", "exact")},
                "fold": {"anyOf": [written(each) for each in options["fold"]["anyOf"]]},
                "include": {"const": "vector"},
            },
            "additionalProperties": False,
        },
    }


def _options(most: int) -> dict[str, Schema]:
    return {
        "k": {"type": ["integer", "null"], "minimum": 1, "maximum": most, "default": 10},
        "offset": {"type": ["integer", "null"], "minimum": 0, "maximum": DEEPEST - most, "default": 0},
        "where": _WHERE,
        "min_score": {
            "type": ["number", "null"],
            "minimum": -1,
            "maximum": 1,
            "description": "Only hits of at least this cosine.",
        },
        "exact": {"type": ["boolean", "null"], "description": "Compare with every vector, whatever the index."},
        "fold": {
            "anyOf": [{"type": ["boolean", "null"]}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}],
            "description": "Show near duplicates as one hit; a number is the cosine from which they are.",
        },
        "include": {"type": ["array", "null"], "items": {"const": "vector"}},
    }


def _replies() -> dict[str, Schema]:
    recall: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    index: Schema = {
        "type": ["object", "null"],
        "description": "Its kind and parameters; recall is of 10 neighbours, measured against exact search.",
        "properties": {"kind": _WORDS, "recall": recall},
    }
    gallery = _object(
        {
            "id": _WORDS,
            "object": {"const": "gallery"},
            "images": _COUNT,
            "model": _WORDS,
            "dim": _COUNT,
            "generation": {**_COUNT, "description": "Rises with each change."},
            "format": _COUNT,
            "bytes": {**_COUNT, "description": "On disk."},
            "index": index,
            "writable": {"type": "boolean"},
        }
    )
    field = _object(
        {
            "type": _WORDS,
            "entries": _COUNT,
            "distinct": _COUNT,
            "sampled": {"type": "boolean"},
            "values": _list(_object({"value": {"type": ["string", "number", "boolean"]}, "count": _COUNT})),
        }
    )
    facts = {
        "id": ID,
        "uri": _WORDS,
        "metadata": {"type": "object"},
        "sha256": {**_WORDS, "description": "Of the image file; empty where there is only a vector."},
        "width": _COUNT,
        "height": _COUNT,
        "folder": _WORDS,
        "thumbnail": {"type": ["string", "null"], "description": "A path on this server."},
    }
    item = _object({**facts, "key": _WORDS, "size": _COUNT, "mtime": {**_NUMBER, "description": "Seconds since 1970."}})
    hit = _object(
        {
            **facts,
            "score": {**_NUMBER, "description": "Cosine."},
            "percentile": {
                **recall,
                "description": "Share of random pairs of the gallery that are less alike; null in a tiny gallery.",
            },
            "folded": {**_list(ID), "description": "Further hits that are near duplicates of this one."},
        }
    )
    hit["properties"]["vector"] = _list(_NUMBER)
    following: Schema = {"type": ["integer", "null"], "description": "For the next page; null on the last."}
    written = _object({"id": ID, "key": _WORDS, "created": {"type": "boolean"}})
    fields = {"fields": {"type": "object", "additionalProperties": field}}
    return {
        "GalleryFacts": gallery,
        "Gallery": _object({**gallery["properties"], **fields}),
        "Galleries": _object({"object": {"const": "list"}, "data": _list(_ref("GalleryFacts"))}),
        "Item": item,
        "Items": _object(
            {"object": {"const": "list"}, "images": _list(_ref("Item")), "next": following, "matching": _COUNT}
        ),
        "Written": _object({"object": {"const": "list"}, "images": _list(written), "gallery": _WORDS}),
        "Deleted": _object({"deleted": _COUNT}),
        "StoredVector": _object({"id": ID, "vector": _list(_NUMBER)}),
        "GalleryHits": _object(
            {
                "object": {"const": "list"},
                "hits": _list(hit),
                "gallery": _WORDS,
                "model": _WORDS,
                "images": {**_COUNT, "description": "In the gallery."},
                "matching": {**_COUNT, "description": "Of them, those that the filter lets through."},
                "next": following,
                "index": index,
            }
        ),
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _closed(properties: dict[str, Schema]) -> Schema:
    return _object(properties) | {"additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}
