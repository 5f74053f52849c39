"""describe, batch and jobs, as OpenAPI has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from model.request import FinishReason
from model.serving.batch import USAGE
from model.serving.jobs import JobStatus
from model.serving.jobs_http import AFTER, LIMIT
from model.serving.openapi.parameters import PARAMETERS, PRIORITY, TIMEOUT_SECONDS
from model.serving.openapi.parts import (
    BOOLEAN,
    COUNT,
    JSON,
    STRING,
    WORK_ERRORS,
    answer,
    array,
    body,
    either,
    errors,
    event,
    in_path,
    in_query,
    nullable,
    obj,
    one_of,
    ref,
    response,
    sample_base64,
    sample_url,
)
from model.serving.sse import EVENT_STREAM, JSON_LINES
from model.serving.styles import MAX_LANGUAGE_LENGTH, STYLES

if TYPE_CHECKING:
    from model.serving.openapi.parts import Schema
    from model.settings import Settings


def _type(name: str) -> dict[str, Schema]:
    """The member that says what an event is."""
    return {"type": {"const": name}}


PICTURE: Final[Schema] = {
    "type": "string",
    "description": "A file as base64, a data: URL with base64, or an http(s) URL where fetching is "
    "allowed.",
}
FILE: Final[Schema] = either(
    {"type": "string", "format": "binary", "description": "A JPEG, PNG, WebP or GIF file."},
    {"type": "string", "description": "An http(s) URL."},
)
MILLISECONDS: Final[Schema] = {"type": "number", "minimum": 0}
TIMES: Final = ("prepare_ms", "queue_ms", "first_text_ms", "generate_ms", "total_ms")
HEAD: Final[dict[str, Schema]] = {
    "id": {**STRING, "description": "The same as X-Request-Id."},
    "model": STRING,
}
STATUS: Final[Schema] = {"type": "integer", "minimum": 400, "maximum": 599}
JOB: Final = in_path("job_id", STRING)
WHEN: Final[Schema] = {"type": "string", "format": "date-time"}

DESCRIPTION: Final[dict[str, Schema]] = {
    "description": {**STRING, "description": "What the model says."},
    "style": one_of(STYLES),
    "language": STRING,
    "tags": array(STRING, description="Of the style tags: its text as a list."),
    "finish_reason": one_of(reason.value for reason in FinishReason if reason.value != "error"),
    "usage": ref("Usage"),
    "images": array(ref("SeenImage")),
    "timings": answer(dict.fromkeys(TIMES, MILLISECONDS)),
}
ONLY_IF_ASKED: Final = ("style", "language", "tags")
RESULTS: Final[tuple[dict[str, Schema], ...]] = (
    {"index": COUNT, **DESCRIPTION},
    {"index": COUNT, "error": STRING, "status": STATUS},
)
RESULT: Final[Schema] = either(*(answer(one, optional=ONLY_IF_ASKED) for one in RESULTS))
SUMMARY: Final[dict[str, Schema]] = {"succeeded": COUNT, "failed": COUNT, "usage": ref("Usage")}

OPTIONS: Final[dict[str, Schema]] = {
    "style": nullable(one_of(STYLES, description="What kind of text.")),
    "language": nullable(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_LANGUAGE_LENGTH,
            "description": "Of the answer: a name, or a tag as de-AT.",
        }
    ),
    "stream": nullable({**BOOLEAN, "description": "Answer piece by piece; not of jobs."}),
    **PARAMETERS,
    "priority": PRIORITY,
    "timeout_seconds": TIMEOUT_SECONDS,
}

COMPONENTS: Final[dict[str, Schema]] = {
    "Usage": answer(dict.fromkeys(USAGE, COUNT)),
    "SeenImage": answer(
        dict.fromkeys(("width", "height", "seen_width", "seen_height", "tokens"), COUNT),
    ),
    "Description": answer({**HEAD, **DESCRIPTION}, optional=ONLY_IF_ASKED),
    "DescriptionEvent": either(
        answer(
            {
                **_type("start"),
                **HEAD,
                "images": array(ref("SeenImage")),
                "usage": answer(dict.fromkeys(("prompt_tokens", "image_tokens"), COUNT)),
            }
        ),
        answer({**_type("delta"), "text": STRING}),
        answer({**_type("end"), **HEAD, **DESCRIPTION}, optional=ONLY_IF_ASKED),
        ref("ErrorEvent"),
    ),
    "ErrorEvent": answer({**_type("error"), "error": STRING, "status": STATUS}),
    "Batch": answer({**HEAD, "results": array(RESULT), **SUMMARY}),
    "BatchEvent": either(
        answer({**_type("start"), **HEAD, "total": COUNT}),
        *(answer({**_type("result"), **result}, optional=ONLY_IF_ASKED) for result in RESULTS),
        answer({**_type("end"), **HEAD, **SUMMARY}),
        ref("ErrorEvent"),
    ),
    "Job": answer(
        {
            "id": STRING,
            "model": STRING,
            "status": one_of(status.value for status in JobStatus),
            "error": {**STRING, "description": "Why it failed."},
            "total": COUNT,
            **SUMMARY,
            "created_at": WHEN,
            **dict.fromkeys(("started_at", "finished_at", "expires_at"), nullable(WHEN)),
        },
        optional=("error",),
    ),
    "JobResults": answer(
        {
            "id": STRING,
            "status": one_of(status.value for status in JobStatus),
            "total": COUNT,
            "results": array(RESULT),
            "next": nullable({**COUNT, "description": "`after` of the next page; null: no more."}),
        }
    ),
}


def operations(settings: Settings) -> dict[tuple[str, str], dict[str, Any]]:
    """What each route takes and answers, by method and path."""
    job, results = ("/api/v1/jobs/{job_id}", "/api/v1/jobs/{job_id}/results")
    return {
        ("post", "/api/v1/describe"): {
            **_body(settings, "image", "prompt", settings.image.max_per_request, _QUESTIONS),
            "responses": {
                "200": _answered("Description", "the description"),
                **errors(*WORK_ERRORS),
            },
        },
        ("post", "/api/v1/batch"): {
            **_body(settings, "images", "prompts", settings.request.max_batch, _BATCHES),
            "responses": {
                "200": _answered("Batch", "each picture's result, in order"),
                **errors(*WORK_ERRORS),
            },
        },
        ("post", "/api/v1/jobs"): {
            **_body(settings, "images", "prompts", settings.jobs.max_pictures, _BATCHES),
            "responses": {"202": _taken(), **errors(*WORK_ERRORS)},
        },
        ("get", job): {
            "parameters": [JOB],
            "responses": {"200": _job(), **errors(404, 500, 503)},
        },
        ("delete", job): {
            "parameters": [JOB],
            "responses": {"200": _job(), **errors(404, 500, 503)},
        },
        ("get", results): {
            "parameters": [JOB, in_query(AFTER), in_query(LIMIT)],
            "responses": {
                "200": response("A page of results.", {JSON: ref("JobResults")}),
                **errors(400, 404, 500, 503),
            },
        },
    }


def _body(
    settings: Settings, pictures: str, prompts: str, most: int, examples: dict[str, Any]
) -> dict[str, Any]:
    """A request as JSON and as a form; both have the same fields."""
    several = {"minItems": 1, "maxItems": most}
    text: Schema = {
        "type": "string",
        "maxLength": settings.request.max_prompt_bytes,
        "description": f"Default: {settings.request.default_prompt!r}, or what the style asks.",
    }
    if prompts == "prompts":
        # Too long a one is the fault of its picture alone.
        del text["maxLength"]
        text = either(text, array(nullable(text), maxItems=most))
    shared = {prompts: nullable(text), **OPTIONS}
    return body(
        {
            JSON: obj(
                {pictures: either(PICTURE, array(PICTURE, **several)), **shared},
                required=[pictures],
            ),
            "multipart/form-data": obj(
                {pictures: array(FILE, **several), **shared}, required=[pictures]
            ),
        },
        examples,
    )


def _answered(name: str, what: str) -> dict[str, Any]:
    """A whole answer, or a stream of events that ends with it."""
    return response(
        f"As a whole, {what}. With `stream`, or an Accept header of a stream's type alone, events: "
        "a `start`, then each piece as it comes, then an `end`; or an `error` with its `status`.",
        {
            JSON: ref(name),
            EVENT_STREAM: event(ref(f"{name}Event"), named=True),
            JSON_LINES: ref(f"{name}Event"),
        },
    )


def _job() -> dict[str, Any]:
    return response("The job as it is now.", {JSON: ref("Job")})


def _taken() -> dict[str, Any]:
    """A job that was taken, and how to follow it."""
    follow = {"parameters": {"job_id": "$response.body#/id"}}
    names = ("state_api_v1_jobs__job_id__get", "cancel_api_v1_jobs__job_id__delete")
    return {
        **response(
            "The job was taken.",
            {JSON: ref("Job")},
            {"Location": {"description": "Where the job is.", "schema": STRING}},
        ),
        "links": {name.partition("_")[0]: {"operationId": name, **follow} for name in names},
    }


_QUESTIONS: Final = {
    "a picture": {"image": sample_base64()},
    "a question, briefly answered": {
        "image": sample_url(),
        "prompt": "What color is the circle?",
        "style": "brief",
        "max_tokens": 20,
    },
    "two pictures, tags": {
        "image": [sample_base64(), sample_url()],
        "style": "tags",
        "language": "English",
        "temperature": 0.5,
        "seed": 7,
    },
    "a stream": {"image": sample_base64(), "stream": True, "max_tokens": 10},
}
_BATCHES: Final = {
    "one question for all": {
        "images": [sample_base64(), sample_url()],
        "prompts": ["What color is the background?"],
    },
    "a question for each": {
        "images": [sample_base64(), sample_base64()],
        "prompts": ["What color is the background?", None],
        "max_tokens": 20,
    },
}
