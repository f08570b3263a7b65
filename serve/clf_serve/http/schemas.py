"""JSON Schemas of what the API takes and gives, for its OpenAPI document."""

from __future__ import annotations

from typing import Any, TypeAlias

from clf_serve.http.kserve import LENGTH
from clf_serve.http.shapes import PLACES

Schema: TypeAlias = dict[str, Any]

_NOTHING: Schema = {"enum": ["", None]}
_FLAG: Schema = {"type": ["boolean", "null"]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def schemas(models: list[str], dim: int, most_images: int, most_neighbours: int) -> dict[str, Schema]:
    """Args: dim: of the model with the most; each may be asked for as many as it has."""
    return {
        **_images(most_images),
        **_requests(models, dim, most_neighbours),
        **_replies(),
        **_kserve(most_images),
    }


def _images(most: int) -> dict[str, Schema]:
    text: Schema = {
        "type": "string",
        "format": "image-base64",
        "minLength": 32,
        "description": "An image file in base64, or as a data URI; where the server allows it, a URL.",
    }
    none: Schema = {place: {"type": "null"} for place in PLACES}
    texts = {"text": _NOTHING, "input_text": _NOTHING}
    address = {"type": "object", "required": ["url"], "properties": {**none, **texts, "url": ref("ImageText")}}
    alone: list[Schema] = [
        {"required": [name], "properties": {**none, name: {"anyOf": [ref("ImageText"), address]}}} for name in PLACES
    ]
    item = {"anyOf": [ref("ImageText"), ref("ImageObject"), ref("ImageContent")]}
    return {
        "ImageText": text,
        "ImageObject": {
            "type": "object",
            "description": "One image, as Jina, vLLM, OpenAI or Voyage write it. Text beside it is refused.",
            "properties": texts,
            "not": {"required": ["content"]},
            "oneOf": alone,
        },
        "ImageContent": {
            "type": "object",
            "required": ["content"],
            "properties": {"content": {"type": "array", "minItems": 1, "maxItems": 1, "items": ref("ImageObject")}},
        },
        "Images": {"anyOf": [*item["anyOf"], {"type": "array", "minItems": 1, "maxItems": most, "items": item}]},
        "Messages": {
            "type": "array",
            "minItems": 1,
            "description": "A conversation, as vLLM takes it; each image in it gets an embedding. Text is refused.",
            "items": {
                "type": "object",
                "required": ["content"],
                "properties": {
                    "role": {"type": "string"},
                    "content": {"type": "array", "minItems": 1, "items": ref("ImageObject")},
                },
            },
        },
    }


def _requests(models: list[str], dim: int, most: int) -> dict[str, Schema]:
    model: Schema = {"enum": [*models, None], "description": "Which model; by default the first."}
    k: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": most, "default": 10}
    places = ("input", "inputs", "images", "image", "messages")
    options: dict[str, Schema] = {
        "model": model,
        "encoding_format": {"enum": ["float", "base64", None], "description": "base64: of little-endian float32."},
        "dimensions": {
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": dim,
            "description": "The first so many numbers, of unit length again; 0 means all. An encoder that was not "
            "trained for it loses accuracy.",
        },
    }
    images = {name: ref("Messages" if name == "messages" else "Images") for name in places}
    files: Schema = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    query: Schema = {
        "image": {"anyOf": [ref("ImageText"), ref("ImageObject")]},
        "vector": {
            "type": "array",
            "items": {"type": "number"},
            "contains": {"type": "number", "not": {"const": 0}},
            "description": "As long as the model's embeddings; of any length in space but zero.",
            **({"minItems": dim, "maxItems": dim} if len(models) == 1 else {}),
        },
        "id": {
            "type": "integer",
            "minimum": -(2**63),
            "maximum": 2**63 - 1,
            "description": "Of an image of the gallery, which is left out of its hits.",
        },
    }
    return {
        "EmbeddingsRequest": {
            "type": "object",
            "description": "Images stand in one of five fields. Unknown fields are ignored.",
            "properties": {**images, **options, "modality": {"enum": ["image", None]}},
            "oneOf": [{"required": [name]} for name in places],
        },
        "EmbeddingsForm": {
            "type": "object",
            "description": "Files under any names, in the order of their embeddings.",
            "required": ["images"],
            "properties": {"images": files, **{name: written(each) for name, each in options.items()}},
        },
        "SearchRequest": {
            "type": "object",
            "properties": {**query, "k": k, "model": model},
            "oneOf": [{"required": [name]} for name in query],
        },
        "SearchForm": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary"},
                "k": written(k),
                "model": written(model),
            },
        },
    }


def written(schema: Schema) -> Schema:
    """As a form or a URL has it, where there is no null."""
    changed = dict(schema)
    if "enum" in changed:
        changed["enum"] = [value for value in changed["enum"] if value is not None]
    if isinstance(changed.get("type"), list):
        changed["type"] = changed["type"][0]
    return changed


def parameter(name: str, requests: dict[str, Schema]) -> Schema:
    """A query parameter with the meaning of the field of the same name."""
    form = requests["SearchForm" if name == "k" else "EmbeddingsForm"]
    return {"name": name, "in": "query", "required": False, "schema": form["properties"][name]}


def _replies() -> dict[str, Schema]:
    number = {"type": "integer", "minimum": 0}
    embedding = {
        "anyOf": [{"type": "array", "items": {"type": "number"}, "minItems": 1}, {"type": "string"}],
        "description": "Numbers, or base64 of little-endian float32.",
    }
    usage = _object({"prompt_tokens": number, "total_tokens": number})
    hit = _object(
        {
            "id": {"type": "integer"},
            "uri": {"type": "string"},
            "score": {"type": "number", "description": "Cosine."},
            "metadata": {"type": "object"},
            "thumbnail": {"type": "string", "description": "A URL on this server."},
        }
    )
    model = _object(
        {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": {"type": "integer", "description": "Seconds since 1970."},
            "owned_by": {"type": "string"},
            "dim": number,
            "image_size": number,
            "plugin": {"type": "string"},
            "backbone": {"type": "string"},
            "run": {"type": "string"},
            "sha256": {"type": "string"},
            "preprocessing": {"type": "string"},
            "device": {"type": "string"},
            "engine": {"type": "object", "description": "How the model runs: what was asked for, and what it got."},
            "max_images": number,
            "max_bytes": number,
        }
    )
    model["properties"]["gallery_images"] = number
    kinds = ["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    words: Schema = {"type": "string"}
    error = _object({"message": words, "type": {"enum": kinds}, "param": {"type": ["string", "null"]}, "code": words})
    row = _object({"object": {"const": "embedding"}, "index": number, "embedding": embedding})
    rows = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    return {
        "Error": _object({"error": error}),
        "Embeddings": _object({"object": {"const": "list"}, "data": _list(row), "model": words, "usage": usage}),
        "NomicEmbeddings": _object({"embeddings": rows, "model": words, "usage": usage}),
        "Hits": _object({"object": {"const": "list"}, "hits": _list(hit), "model": words}),
        "Model": model,
        "Models": _object({"object": {"const": "list"}, "data": _list(ref("Model"))}),
        "Status": _object({"status": words}),
        "Reloaded": _object({"reloaded": _list(words)}),
    }


def _kserve(most: int) -> dict[str, Schema]:
    words: Schema = {"type": "string"}
    count: Schema = {"type": "integer", "minimum": 0}
    parameters: Schema = {"type": ["object", "null"]}
    shape = {"type": "array", "items": {"type": "integer"}}
    tensor = _object({"name": words, "datatype": words, "shape": shape})
    tensors = {"inputs": _list(tensor), "outputs": _list(tensor)}
    timed = _object({"count": count, "ns": count})
    names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    stats = {
        "name": words,
        "version": words,
        "last_inference": count,
        "inference_count": count,
        "execution_count": count,
        "inference_stats": _object(dict.fromkeys(names, timed)),
        "batch_stats": {"type": "array"},
    }
    asked = _object({"name": {"enum": ["images", "encoded"]}, "shape": shape, "datatype": {"enum": ["UINT8", "BYTES"]}})
    asked["properties"] |= {"parameters": parameters, "data": {"type": "array"}}
    wanted: Schema = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"const": "embeddings"}, "parameters": parameters},
    }
    answer = _object({"name": {"const": "embeddings"}, "datatype": {"const": "FP32"}, "shape": shape})
    answer["properties"] |= {"data": {"type": "array", "items": {"type": "number"}}, "parameters": {"type": "object"}}
    reply = _object({"model_name": words, "model_version": words, "outputs": _list(answer)})
    reply["properties"]["id"] = words
    return {
        "V2Error": _object({"error": words}),
        "V2Server": _object({"name": words, "version": words, "extensions": _list(words)}),
        "V2Live": _object({"live": {"type": "boolean"}}),
        "V2Ready": _object({"ready": {"type": "boolean"}}),
        "V2Model": _object({"name": words, "versions": _list(words), "platform": words, **tensors}),
        "V2Config": {"type": "object", "required": ["name", "max_batch_size", "input", "output"]},
        "V2Stats": _object({"model_stats": _list(_object(stats))}),
        "V2Index": _list(_object({"name": words, "version": words, "state": words, "reason": words})),
        "V2Request": {
            "type": "object",
            "description": "images: UINT8 (n, S, S, 3), pixels that are prepared already; or encoded: BYTES (n), image "
            f"files, in base64 unless they follow in binary ({LENGTH}). n is at most {most}.",
            "required": ["inputs"],
            "properties": {
                "id": {"type": ["string", "null"]},
                "parameters": {
                    "type": ["object", "null"],
                    "properties": {"binary_data_output": _FLAG},
                },
                "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": asked},
                "outputs": {"type": ["array", "null"], "maxItems": 1, "items": wanted},
            },
        },
        "V2Reply": reply,
    }


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}
