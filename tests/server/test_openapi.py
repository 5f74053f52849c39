"""/openapi.json says what the server does: each route, example and answer; and a page of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.requests import Request

from model.errors import Unsupported
from model.serving.job_runner import JobRunner
from model.serving.lifecycle import Lifecycle
from model.serving.openapi import build_document
from model.serving.routing import routes_of
from model.serving.server import build_app, build_job_store
from model.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.applications import Starlette

    from tests.serving import RunningServer

SETTINGS = Settings()
METHODS = {"get", "post", "delete"}
# Parts of the page that shows this, and the way to the other page.
PAGES = ("/api/docs/", "/ui")


class Unloaded:
    """As much of a model as routes need to be made."""

    name = "qwen3-vl"
    names = ("qwen3-vl",)
    settings = SETTINGS
    loaded = False
    load_seconds = None


def app() -> Starlette:
    """The app, as a server has it before its model is loaded."""
    model: Any = Unloaded()
    jobs = JobRunner(model, build_job_store(SETTINGS.jobs), Lifecycle(), SETTINGS.jobs)
    return build_app(model, Lifecycle(), SETTINGS, jobs)


DOCUMENT = build_document(routes_of(app()), SETTINGS)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation)."""
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield method, path, operation


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    while "$ref" in part:
        found: Any = DOCUMENT
        for key in part["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        part = found
    return part


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def check_answer(operation: dict[str, Any], answer: httpx.Response) -> None:
    """The answer is one of those that the operation declares."""
    described = resolved(operation["responses"][str(answer.status_code)])
    for name, header in described["headers"].items():
        if resolved(header).get("required"):
            assert name in answer.headers
    if not described.get("content"):
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][media_type]["schema"]
    match media_type:
        case "application/json":
            validator(schema).validate(answer.json())
        case "application/x-ndjson":
            for line in answer.text.splitlines():
                validator(schema).validate(json.loads(line))
        case "text/event-stream":
            check_events(schema, answer.text)
        case _:
            validator(schema).validate(answer.text)


def check_events(schema: dict[str, Any], text: str) -> None:
    """Each event of a stream, and the JSON in it, is as declared."""
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert blocks
    for block in blocks:
        event = dict(line.split(": ", 1) for line in block.split("\n"))
        validator(schema).validate(event)
        data = schema["properties"]["data"]
        if event["data"] == "[DONE]":
            assert data["anyOf"][0] == {"const": "[DONE]"}
            continue
        [said] = [one for one in data.get("anyOf", [data]) if "contentSchema" in one]
        validator(said["contentSchema"]).validate(json.loads(event["data"]))


def url_of(path: str) -> str:
    return path.replace("{model_name}", "qwen3-vl").replace("{version}", "1")


def test_the_server_serves_it(server: RunningServer) -> None:
    answer = httpx.get(f"{server.http_url}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(DOCUMENT))
    assert answer.json()["openapi"].startswith("3.1")


async def test_every_route_is_described() -> None:
    shown, hidden = [], []
    for route in routes_of(app()):
        (shown if route.include_in_schema else hidden).append(route)
    assert len(shown) > 30
    for route in shown:
        for method in route.methods:
            operation = DOCUMENT["paths"][route.path_format][method.lower()]
            assert operation["summary"], route.path
            assert operation["responses"], route.path
            assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
            said = operation.get("parameters", ())
            in_path = [one["name"] for one in said if one["in"] == "path"]
            assert in_path == list(route.param_convertors), route.path
    # Of the others each is a second path of one that is, for browsers, or unsupported.
    endpoints = {route.endpoint for route in shown}
    for route in hidden:
        if route.endpoint in endpoints or route.path == "/" or route.path.startswith(PAGES):
            continue
        with pytest.raises(Unsupported):
            await route.endpoint(Request({"type": "http"}))


def test_every_operation_has_an_id_of_its_own() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)
    # Generated clients name their functions so.
    assert {"models_v1_models_get", "infer_v2_models__model_name__infer_post"} <= set(ids)


def test_what_runs_the_model_is_matched_and_described_first() -> None:
    first = [route.path for route in routes_of(app()) if route.inference]
    assert [route.path for route in routes_of(app())][: len(first)] == first
    shown = [path for path in first if path in DOCUMENT["paths"]]
    assert list(DOCUMENT["paths"])[: len(shown)] == shown
    assert {
        "/api/v1/describe",
        "/openai/v1/chat/completions",
        "/v1/completions",
        "/v2/models/{model_name}/generate_stream",
    } <= set(first)


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    text = json.dumps(DOCUMENT)
    references = set(re.findall(r'"\$ref": "([^"]+)"', text))
    for reference in references:
        resolved({"$ref": reference})
    for kind, components in DOCUMENT["components"].items():
        unused = {name for name in components if f"#/components/{kind}/{name}" not in references}
        if kind == "responses":
            # All statuses in both forms, whether each is needed or not.
            continue
        assert not unused, kind


def test_every_schema_is_a_schema() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for _, _, operation in operations():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            Draft202012Validator.check_schema(content["schema"])


def examples() -> list[Any]:
    """Every example of a request's body."""
    found = []
    for method, path, operation in operations():
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            for name, example in content.get("examples", {}).items():
                assert media_type == "application/json"
                case = (method, path, operation, content["schema"], example["value"])
                found.append(pytest.param(*case, id=f"{method} {path}: {name}"))
    return found


@pytest.mark.parametrize(("method", "path", "operation", "schema", "value"), examples())
def test_every_example_is_accepted_and_answered_as_described(
    server: RunningServer,
    method: str,
    path: str,
    operation: dict[str, Any],
    schema: dict[str, Any],
    value: dict[str, Any],
) -> None:
    validator(schema).validate(value)
    url = server.http_url + url_of(path)
    for accept in operation["responses"].get("200", {}).get("content", {"*/*": {}}):
        headers = {"accept": accept}
        answer = httpx.request(method, url, json=value, headers=headers, timeout=60)
        assert answer.is_success, answer.text
        check_answer(operation, answer)


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        pytest.param(path, operation, id=path)
        for method, path, operation in operations()
        if method == "get" and "job_id" not in path
    ],
)
def test_what_is_read_is_as_described(
    server: RunningServer, path: str, operation: dict[str, Any]
) -> None:
    check_answer(operation, httpx.get(server.http_url + url_of(path)))
    if "{" in path:
        other = path.replace("{model_name}", "other").replace("{version}", "7")
        missing = httpx.get(server.http_url + other)
        assert missing.status_code == 404
        check_answer(operation, missing)


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        pytest.param(path, operation, id=path)
        for method, path, operation in operations()
        if method == "post"
    ],
)
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param({"content": b"{"}, id="broken JSON"),
        pytest.param({"json": {"imag": 1}}, id="nothing that is asked for"),
        pytest.param({"content": b"x", "headers": {"content-type": "text/plain"}}, id="text"),
        pytest.param({"content": b"x", "headers": {"content-encoding": "br"}}, id="an encoding"),
    ],
)
def test_faults_are_told_as_described(
    server: RunningServer, path: str, operation: dict[str, Any], request_: dict[str, Any]
) -> None:
    answer = httpx.post(server.http_url + url_of(path), timeout=30, **request_)
    assert answer.status_code in (400, 415), answer.text
    check_answer(operation, answer)


def test_a_job_is_as_described_from_its_beginning_to_its_end(server: RunningServer) -> None:
    paths = DOCUMENT["paths"]
    value = next(iter(_examples_of("/api/v1/jobs").values()))["value"]
    taken = httpx.post(f"{server.http_url}/api/v1/jobs", json=value)
    links = resolved(paths["/api/v1/jobs"]["post"]["responses"]["202"])["links"]
    known = {operation["operationId"] for _, _, operation in operations()}
    assert {link["operationId"] for link in links.values()} <= known
    url = f"{server.http_url}/api/v1/jobs/{taken.json()['id']}"
    for method, path in (
        ("get", "/api/v1/jobs/{job_id}"),
        ("get", "/api/v1/jobs/{job_id}/results"),
        ("delete", "/api/v1/jobs/{job_id}"),
        ("get", "/api/v1/jobs/{job_id}"),
    ):
        suffix = path.removeprefix("/api/v1/jobs/{job_id}")
        check_answer(paths[path][method], httpx.request(method, url + suffix))
        unknown = httpx.request(method, f"{server.http_url}/api/v1/jobs/unknown{suffix}")
        assert unknown.status_code == 404
        check_answer(paths[path][method], unknown)
    check_answer(paths["/api/v1/jobs/{job_id}/results"]["get"], httpx.get(f"{url}/results?limit=0"))


def _examples_of(path: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path]["post"]["requestBody"]["content"][
        "application/json"
    ]["examples"]
    return found


# The page


def test_the_page_needs_nothing_from_elsewhere(server: RunningServer) -> None:
    page = httpx.get(f"{server.http_url}/api/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(links) == 5
    for link in links:
        if link == "data:,":
            continue
        assert not re.match(r"[a-z]+:|//", link), link
        answer = httpx.get(urljoin(str(page.url), link))
        assert answer.status_code == 200, link
        if link.endswith(".css"):
            assert not re.search(r"url\((?!['\"]?data:)|@import", answer.text)
        if link.endswith("start.js"):
            # By default the page would tell a validator on the internet where it is.
            assert "validatorUrl: null" in answer.text
            assert "http" not in answer.text


def test_the_root_leads_browsers_to_the_page_and_tells_programs_where_things_are(
    server: RunningServer,
) -> None:
    seen = httpx.get(server.http_url, headers={"Accept": "text/html,*/*;q=0.8"})
    assert (seen.status_code, seen.headers["location"]) == (307, "api/docs")
    index = httpx.get(server.http_url).json()
    assert index["name"] == httpx.get(f"{server.http_url}/v2").json()["name"]
    for place in ("docs", "openapi", "health", "metrics"):
        answer = httpx.head(server.http_url + index[place])
        assert (answer.status_code, answer.content) == (200, b"")


def test_the_short_way_leads_to_the_page(server: RunningServer) -> None:
    answer = httpx.get(f"{server.http_url}/docs")
    assert answer.status_code == 307
    assert urljoin(str(answer.url), answer.headers["location"]) == f"{server.http_url}/api/docs"


@pytest.mark.parametrize("name", ["nothing.js", "..", "%2e%2e%2fopenapi.json", "favicon.png"])
def test_the_page_has_no_other_parts(server: RunningServer, name: str) -> None:
    assert httpx.get(f"{server.http_url}/api/docs/{name}").status_code in (404, 405)
