"""Commands that use the API, for a shell in a folder with photo.jpg and other.png. Tests run them."""

from __future__ import annotations

_RAW = "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg'"
_JSON = "-H 'Content-Type: application/json'"
_POST_JSON = f"curl -d @- {_JSON}"
_PHOTO = '"$(base64 -w0 photo.jpg)"'
_TOP = "{base}/v1/galleries/{gallery}"

EXAMPLES = {
    "/v1/embeddings": [
        _RAW + " {base}/v1/embeddings",
        _RAW + " -H 'Accept: application/x-npy' -o vectors.npy '{base}/v1/embeddings?dimensions=2'",
        "curl -F a=@photo.jpg -F b=@other.png -F encoding_format=base64 {base}/v1/embeddings",
        f"""printf '{{"input": ["data:image/jpeg;base64,%s"], "model": "{{model}}"}}' {_PHOTO} |
  {_POST_JSON} {{base}}/v1/embeddings""",
        f"""printf '{{"input": [{{"image": "%s"}}]}}' {_PHOTO} |\n  {_POST_JSON} {{base}}/v1/embeddings""",
    ],
    "/v1/embedding/image": ["curl -F images=@photo.jpg -F images=@other.png {base}/v1/embedding/image"],
    "/v2/models/{model}/infer": [
        """printf '{"inputs": [{"name": "encoded", "shape": [1], "datatype": "BYTES", "data": ["%s"]}]}' """
        f"""{_PHOTO} |\n  {_POST_JSON} '{{base}}/v2/models/{{model}}/infer'""",
        "curl --data-binary @photo.jpg -H 'Inference-Header-Content-Length: 0' '{base}/v2/models/{model}/infer'",
    ],
    "/v1/models": ["curl {base}/v1/models"],
}
"""By path."""

GALLERY_EXAMPLES = {
    "/search": [
        _RAW + " '{base}/search?k=5'",
        "curl -F image=@photo.jpg -F k=5 {base}/search",
        f"""curl -d '{{"id": 1, "k": 5}}' {_JSON} {{base}}/search""",
    ],
    "/thumbnails/{image_id}": ["curl -o thumbnail.jpg {base}/thumbnails/1"],
    "GET /v1/galleries": ["curl {base}/v1/galleries"],
    "GET /v1/galleries/{gallery}": [f"curl {_TOP}"],
    "GET /v1/galleries/{gallery}/images": [
        f"curl '{_TOP}/images?limit=20'",
        f"""curl -G {_TOP}/images --data-urlencode 'where={{"@width": {{"$gte": 40}}}}'""",
    ],
    "GET /v1/galleries/{gallery}/images/{image_id}": [f"curl {_TOP}/images/1"],
    "GET /v1/galleries/{gallery}/images/{image_id}/thumbnail": [f"curl -o thumbnail.jpg {_TOP}/images/1/thumbnail"],
    "GET /v1/galleries/{gallery}/images/{image_id}/vector": [
        f"curl -H 'Accept: application/x-npy' -o vector.npy {_TOP}/images/1/vector"
    ],
    "GET /v1/galleries/{gallery}/search": [f"curl '{_TOP}/search?id=1&k=5'"],
    "POST /v1/galleries/{gallery}/search": [
        f"{_RAW} '{_TOP}/search?k=5'",
        f"""curl -d '{{"like": [1, {{"id": 2, "weight": 2}}], "unlike": [3], "where": {{"@size": {{"$lt": 9999}}}}}}' \\
  {_JSON} {_TOP}/search""",
        f"""curl -d '{{"id": 1, "min_score": 0.9, "fold": true}}' {_JSON} {_TOP}/search""",
    ],
}
"""By path, or by method and path; for a server with a gallery."""

WRITING_EXAMPLES = {
    "POST /v1/galleries/{gallery}/images": [
        f"{_RAW} '{_TOP}/images?key=photo'",
        f"""curl -F file=@photo.jpg -F key=photo -F 'metadata={{"label": "cat"}}' {_TOP}/images""",
        f"""printf '{{"images": [{{"key": "photo", "image": "%s", "metadata": {{"label": "cat"}}}}]}}' {_PHOTO} |
  {_POST_JSON} {_TOP}/images""",
    ],
    "PATCH /v1/galleries/{gallery}/images/{image_id}": [
        f"""curl -X PATCH -d '{{"metadata": {{"colour": "red", "year": null}}}}' \\
  -H 'Content-Type: application/merge-patch+json' {_TOP}/images/1"""
    ],
    "DELETE /v1/galleries/{gallery}/images/{image_id}": [f"curl -X DELETE {_TOP}/images/2"],
    "POST /v1/galleries/{gallery}/delete": [
        f"""curl -d '{{"ids": [3, 4]}}' {_JSON} {_TOP}/delete""",
        f"""curl -d '{{"where": {{"label": "cat"}}, "confirm": 1}}' {_JSON} {_TOP}/delete""",
    ],
}
"""By method and path, for a server whose galleries may be changed; they work in this order."""


def examples(path: str, base: str, model: str, gallery: str = "GALLERY", method: str = "") -> list[str]:
    """Commands that use ``path`` of the server at ``base``.

    Args:
        gallery: as it stands in a URL.
    """
    tables = (EXAMPLES, GALLERY_EXAMPLES, WRITING_EXAMPLES)
    lines = [line for table in tables for key in (path, f"{method} {path}") for line in table.get(key, ())]
    names = {"{base}": base, "{model}": model, "{gallery}": gallery}
    for name, value in names.items():
        lines = [line.replace(name, value) for line in lines]
    return lines
