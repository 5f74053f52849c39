"""Jobs over HTTP, kept in memory and in a real Redis: progress, results, and every end."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.demo import SAMPLES_DIR
from tests.redis_server import RedisServer, redis_server
from tests.serving import RunningServer, start_server, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUTE = "/api/v1/jobs"
LONG = {"max_tokens": 3000, "ignore_eos": True}
PICTURES = [
    base64.b64encode(path.read_bytes()).decode() for path in sorted(SAMPLES_DIR.glob("*.jpg"))
]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@contextmanager
def sharing(redis: RedisServer, *arguments: str) -> Iterator[RunningServer]:
    with start_server("--jobs.redis_url", redis.url, *arguments) as running:
        yield running


@pytest.fixture(scope="module")
def replica(redis: RedisServer) -> Iterator[RunningServer]:
    with sharing(redis) as running:
        yield running


@pytest.fixture(params=["server", "replica"], ids=["memory", "redis"])
def either(request: pytest.FixtureRequest) -> RunningServer:
    """A server with either store."""
    running: RunningServer = request.getfixturevalue(request.param)
    return running


def submit(server: RunningServer, **fields: Any) -> dict[str, Any]:
    response = httpx.post(server.http_url + ROUTE, json=fields, timeout=60)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"{ROUTE}/{job['id']}"
    return job


def state(server: RunningServer, job_id: str) -> dict[str, Any]:
    response = httpx.get(f"{server.http_url}{ROUTE}/{job_id}", timeout=30)
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


def page(server: RunningServer, job_id: str, **query: int) -> dict[str, Any]:
    response = httpx.get(f"{server.http_url}{ROUTE}/{job_id}/results", params=query, timeout=30)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def cancel(server: RunningServer, job_id: str) -> dict[str, Any]:
    response = httpx.delete(f"{server.http_url}{ROUTE}/{job_id}", timeout=30)
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


def ended(server: RunningServer, job_id: str, *, seconds: float = 120) -> dict[str, Any]:
    def over() -> bool:
        return state(server, job_id)["status"] not in ("queued", "running")

    wait_for(over, "the job ends", seconds=seconds)
    return state(server, job_id)


def test_a_job_says_what_a_batch_says(either: RunningServer) -> None:
    fields = {"images": [*PICTURES, "@"], "prompts": ["What color is the background?"]}
    taken = submit(either, **fields)
    assert taken["status"] in ("queued", "running")
    assert (taken["total"], taken["succeeded"], taken["failed"]) == (len(PICTURES) + 1, 0, 0)
    batch = httpx.post(f"{either.http_url}/api/v1/batch", json=fields, timeout=60).json()
    job = ended(either, taken["id"])
    assert job["status"] == "completed"
    assert {name: job[name] for name in ("model", "succeeded", "failed", "usage")} == {
        name: batch[name] for name in ("model", "succeeded", "failed", "usage")
    }
    assert taken["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]
    found = page(either, taken["id"])
    assert (found["status"], found["next"]) == ("completed", None)
    results = sorted(found["results"], key=lambda one: one["index"])
    for result, expected in zip(results, batch["results"], strict=True):
        assert {**result, "timings": None} == {**expected, "timings": None}


def test_results_come_page_by_page_while_the_job_runs(either: RunningServer) -> None:
    job_id = submit(either, images=PICTURES * 5)["id"]
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        found = page(either, job_id, after=after, limit=7)
        assert len(found["results"]) <= 7
        seen += [result["index"] for result in found["results"]]
        after = found["next"]
        time.sleep(0.02)
    assert sorted(seen) == list(range(5 * len(PICTURES)))
    for beyond in (len(seen), 1 << 63, 10**30):
        found = page(either, job_id, after=beyond)
        assert (found["results"], found["next"]) == ([], None)


def test_a_form_is_a_job_too(server: RunningServer) -> None:
    files = [("images", base64.b64decode(picture)) for picture in PICTURES[:2]]
    response = httpx.post(server.http_url + ROUTE, files=files, data={"style": "tags"}, timeout=60)
    job = ended(server, response.json()["id"])
    assert job["succeeded"] == 2
    assert all(result["tags"] for result in page(server, job["id"])["results"])


def test_a_cancelled_job_stops_and_keeps_what_it_has(either: RunningServer) -> None:
    job_id = submit(either, images=["@", *PICTURES], **LONG)["id"]
    wait_for(lambda: state(either, job_id)["failed"] == 1, "the bad picture is told")
    assert cancel(either, job_id)["status"] == "cancelled"
    either.wait_until_idle()
    assert cancel(either, job_id) == state(either, job_id)
    found = page(either, job_id)
    assert (found["status"], found["next"]) == ("cancelled", None)
    assert [result["index"] for result in found["results"]] == [0]


def test_whoever_waits_goes_before_a_job() -> None:
    with start_server("--engine.max_sequences", "2") as server:
        job_id = submit(server, images=PICTURES * 10, max_tokens=50, ignore_eos=True)["id"]
        server.wait_until_running(8)
        answers = [
            httpx.post(
                f"{server.http_url}/api/v1/describe",
                json={"image": PICTURES[0], "max_tokens": 5},
                timeout=60,
            ).json()
            for _ in range(5)
        ]
        job = state(server, job_id)
        cancel(server, job_id)
    assert job["status"] == "running"
    results = job["succeeded"]
    # Behind the job each would have waited for six of its pictures.
    assert results < 5 * 6
    assert all(answer["finish_reason"] == "length" for answer in answers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "images is missing"),
        ({"images": ["x"] * 1001}, "images has 1001 pictures; the limit is 1000"),
        ({"images": ["x"], "temperature": 11}, "temperature is 11"),
        ({"images": ["x"], "stream": True}, "a job has no stream"),
        ({"images": ["x"], "priority": 5}, "priority is 5; a job's must be from 6 to 9"),
        ({"images": ["x"], "priority": "x"}, "priority is 'x'; it must be an integer"),
        ({"images": ["x"], "priority": False}, "priority is false; it must be an integer"),
        ({"images": ["x"], "timeout_seconds": False}, "timeout_seconds is false; it must be"),
        ({"images": ["x"], "prompts": ["a", "b"]}, "prompts has 2 texts"),
    ],
)
def test_a_wrong_job_is_told_so(
    server: RunningServer, fields: dict[str, Any], message: str
) -> None:
    response = httpx.post(server.http_url + ROUTE, json=fields, timeout=30)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


@pytest.mark.parametrize("job_id", ["0" * 32, "x", "..", "0" * 1000, "%7B%7D", "é"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_job_is_not_found(either: RunningServer, job_id: str, method: str) -> None:
    response = httpx.request(method, f"{either.http_url}{ROUTE}/{job_id}", timeout=30)
    if job_id == "..":
        assert response.status_code in (404, 405)
        return
    assert response.status_code == 404
    assert "is not known" in response.json()["error"]
    assert httpx.get(f"{either.http_url}{ROUTE}/{job_id}/results").status_code == 404


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=1001"])
def test_a_wrong_page_is_told_so(server: RunningServer, query: str) -> None:
    job_id = submit(server, images=["@"])["id"]
    response = httpx.get(f"{server.http_url}{ROUTE}/{job_id}/results?{query}")
    assert response.status_code == 400
    assert query.partition("=")[0] in response.json()["error"]


def test_too_many_jobs_are_refused() -> None:
    with start_server("--jobs.max_unfinished", "2") as server:
        jobs = [submit(server, images=PICTURES[:1], **LONG)["id"] for _ in range(2)]
        response = httpx.post(server.http_url + ROUTE, json={"images": ["@"]})
        assert response.status_code == 429
        assert response.json()["error"] == "2 jobs are queued; the limit is 2; try again later"
        assert response.headers["retry-after"] == "1"
        assert server.metric("unfinished_jobs") == 2
        for job_id in jobs:
            cancel(server, job_id)
        server.wait_until_idle()
        assert server.metric("unfinished_jobs") == 0
        submit(server, images=["@"])


# Several replicas, and Redis itself


def test_any_replica_tells_and_cancels_a_job(redis: RedisServer, replica: RunningServer) -> None:
    with sharing(redis, "--jobs.lease_seconds", "1") as other:
        job_id = submit(other, images=["@", *PICTURES], **LONG)["id"]
        wait_for(lambda: state(replica, job_id)["failed"] == 1, "the bad picture is told")
        assert state(replica, job_id)["status"] == "running"
        assert cancel(replica, job_id)["status"] == "cancelled"
        other.wait_until_idle()


def test_a_job_whose_server_died_has_failed(redis: RedisServer, replica: RunningServer) -> None:
    with sharing(redis, "--jobs.lease_seconds", "1") as other:
        job_id = submit(other, images=["@", *PICTURES], **LONG)["id"]
        wait_for(lambda: state(replica, job_id)["failed"] == 1, "the bad picture is told")
        other.process.kill()
        other.process.wait()
    job = ended(replica, job_id, seconds=10)
    assert (job["status"], job["error"]) == ("failed", "its server went away before it was done")
    assert len(page(replica, job_id)["results"]) == 1


@pytest.mark.parametrize(
    ("drain_seconds", "images", "status"),
    [
        pytest.param("60", PICTURES[:2], "completed", id="within its time a job is completed"),
        pytest.param("0.5", PICTURES * 10, "failed", id="after that it has failed"),
    ],
)
def test_a_server_that_is_shut_down_says_what_became_of_its_jobs(
    redis: RedisServer,
    replica: RunningServer,
    drain_seconds: str,
    images: list[str],
    status: str,
) -> None:
    with sharing(redis, "--server.drain_seconds", drain_seconds) as other:
        job_id = submit(other, images=images, max_tokens=500, ignore_eos=True)["id"]
        wait_for(lambda: state(other, job_id)["status"] == "running", "the job runs")
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(90) == 0
        assert "Traceback" not in other.log()
    job = state(replica, job_id)
    assert job["status"] == status
    if status == "failed":
        assert job["error"] == "its server was shut down before it was done"


def test_a_redis_that_dies_is_a_503_and_the_job_goes_on_when_it_is_back() -> None:
    with redis_server() as own, sharing(own) as server:
        job_id = submit(server, images=PICTURES * 5, max_tokens=100, ignore_eos=True)["id"]
        wait_for(lambda: state(server, job_id)["succeeded"] > 0, "a result is there")
        own.kill()
        url = server.http_url + ROUTE
        for response in (
            httpx.get(f"{url}/{job_id}", timeout=30),
            httpx.get(f"{url}/{job_id}/results", timeout=30),
            httpx.delete(f"{url}/{job_id}", timeout=30),
            httpx.post(url, json={"images": ["@"]}, timeout=30),
        ):
            assert response.status_code == 503, response.text
            assert response.json()["error"] == (
                "the store of jobs does not answer; try again later"
            )
            assert response.headers["retry-after"] == "5"
        # Everything else goes on.
        assert httpx.get(f"{server.http_url}/health").status_code == 200
        own.start()
        job = ended(server, job_id)
        assert (job["status"], job["succeeded"]) == ("completed", 5 * len(PICTURES))
        assert len(page(server, job_id)["results"]) == 5 * len(PICTURES)


def test_a_redis_that_forgot_a_job_ends_it() -> None:
    with redis_server() as own, sharing(own, "--jobs.lease_seconds", "1") as server:
        job_id = submit(server, images=PICTURES[:1], **LONG)["id"]
        wait_for(lambda: state(server, job_id)["status"] == "running", "the job runs")
        own.forget()
        assert httpx.get(f"{server.http_url}{ROUTE}/{job_id}").status_code == 404
        server.wait_until_idle()


def test_a_wrong_redis_url_is_told_without_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "model", "--jobs.redis_url", "http://:secret@127.0.0.1/0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "--jobs.redis_url must begin with redis://, rediss:// or unix://" in ended.stderr
    assert "secret" not in ended.stderr
