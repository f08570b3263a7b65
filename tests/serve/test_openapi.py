"""The OpenAPI document tells the truth: schemathesis tries what it promises, and what it forbids."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from api_helpers import wait_ready
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from serve_helpers import encoded, picture, served, service_of

from clf_serve.engine import Engine
from clf_serve.gallery import Gallery
from clf_serve.limits import ServeLimits
from clf_serve.service import Service

load_all_checks()
FILES = st.sampled_from([encoded(picture(seed, 8, 8), kind) for seed, kind in enumerate(("PNG", "JPEG", "GIF"))])
FILTERS = st.sampled_from([{}, {"label": "cat"}, {"@id": {"$gte": 2}}, {"$not": {"@folder": ""}}])
# a tensor's shape and its data go together, which a schema cannot say
UNSAYABLE = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ == "positive_data_acceptance"]
ONE = "/v1/galleries/{gallery}/images/{image_id}"
# no keys, no such id, and no pair of a shape and its data
UNANSWERED = {
    *(f"{method} {ONE}" for method in ("GET", "PATCH", "DELETE")),
    f"GET {ONE}/thumbnail",
    f"GET {ONE}/vector",
    "GET /v1/galleries/{gallery}/search",
    "POST /admin/reload",
    "GET /thumbnails/{image_id}",
    "POST /v2/models/{model}/infer",
    "POST /v2/models/{model}/versions/{version}/infer",
}
REFUSED = {"expected-statuses": [400, 403, 404, 405, 413, 415, 422]}
CONFIG = {"seed": 1, "checks": {"negative_data_rejection": REFUSED}}
SETTINGS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def service(engine: Engine, indexed: Any) -> Service:
    return service_of(engine, Gallery(indexed), ServeLimits(max_images=64, max_k=50, writable=True))


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[Any]:
    """Images are what hypothesis cannot think of, so it is told."""
    schemathesis.openapi.format("image-base64", FILES.map(lambda blob: base64.b64encode(blob).decode()))
    schemathesis.openapi.format("filter-json", FILTERS.map(json.dumps))
    schemathesis.openapi.format("object-json", st.just("{}"))
    for kind in ("image/*", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, FILES)
    with served(service) as client:
        wait_ready(client)
        tree = client.get("/openapi.json").json()
        schema = schemathesis.openapi.from_dict(tree, config=schemathesis.Config.from_dict(CONFIG))
        schema.config.update(base_url=str(client.base_url))
        yield schema


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_what_the_document_says_is_so(api: Any, mode: GenerationMode) -> None:
    wrong: list[str] = []
    answered = set()
    operations = set()
    for found in api.get_all_operations():
        operation = found.ok()

        @settings(SETTINGS, max_examples=10 if mode is GenerationMode.POSITIVE else 5)
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: schemathesis.Case) -> None:
            reply = case.call_and_validate(excluded_checks=UNSAYABLE if case.path.endswith("/infer") else [])
            if reply.status_code == 200:
                answered.add(case.operation.label)

        operations.add(operation.label)

        try:
            holds()
        except Unsatisfiable:  # nothing about it can be wrong
            assert mode is GenerationMode.NEGATIVE
        except (Exception, ExceptionGroup) as problem:
            wrong.append(f"{operation.label}: {problem} {getattr(problem, 'exceptions', '')}")
    assert not wrong, "\n".join(wrong)
    if mode is GenerationMode.POSITIVE:
        assert operations - answered <= UNANSWERED
