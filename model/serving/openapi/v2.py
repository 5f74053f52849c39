"""The V2 protocol, as OpenAPI has it.

Source: KServe's Open Inference Protocol, Triton's HTTP extensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from model.serving.contract import INPUTS, OUTPUTS, VERSION
from model.serving.openapi.parameters import PARAMETERS, PRIORITY, TIMEOUT_MICROSECONDS
from model.serving.openapi.parts import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    JSON,
    OBJECT,
    STRING,
    WORK_ERRORS,
    answer,
    array,
    body,
    either,
    errors,
    event,
    in_path,
    nullable,
    obj,
    one_of,
    ref,
    response,
    sample_base64,
)
from model.serving.sse import EVENT_STREAM
from model.serving.statistics import ModelStatistics
from model.serving.v2_codec import BINARY_TYPE, HEADER_LENGTH
from model.serving.v2_http import MODEL_PATHS
from model.serving.v2_model import MODEL_STATES
from model.serving.v2_tensors import CONTENT_TYPES, INPUT_NAMES, OUTPUT_NAMES

if TYPE_CHECKING:
    from model.serving.openapi.parts import Schema
    from model.settings import Settings

SIZE: Final[Schema] = {"type": "integer", "minimum": 1}
DURATION: Final[Schema] = answer({"count": COUNT, "ns": COUNT})
TENSOR: Final[Schema] = answer({"name": STRING, "datatype": STRING, "shape": array(ANYTHING)})
CONFIGURED: Final[Schema] = answer(
    {"name": STRING, "data_type": STRING, "dims": array(ANYTHING), "optional": BOOLEAN},
    optional=("optional",),
)
OUTPUT: Final[Schema] = answer(
    {
        "name": one_of(OUTPUT_NAMES),
        "datatype": one_of(sorted({spec.datatype for spec in OUTPUTS})),
        "shape": array(SIZE),
        "data": array(either(STRING, {"type": "integer"})),
        "parameters": OBJECT,
    },
    optional=("data", "parameters"),
)
GENERATED: Final[dict[str, Schema]] = {
    name: either(schema, array(schema))
    for name, schema in (
        ("text", STRING),
        ("text_output", STRING),
        ("finish_reason", STRING),
        ("prompt_tokens", COUNT),
        ("completion_tokens", COUNT),
    )
}
GENERATED_HEAD: Final = {"model_name": STRING, "model_version": STRING, "id": STRING}

COMPONENTS: Final[dict[str, Schema]] = {
    "Live": answer({"live": BOOLEAN}),
    "Ready": answer({"ready": BOOLEAN, "name": STRING}, optional=("name",)),
    "ServerMetadata": answer({"name": STRING, "version": STRING, "extensions": array(STRING)}),
    "ModelMetadata": answer(
        {
            "name": STRING,
            "versions": array(STRING),
            "platform": STRING,
            "inputs": array(TENSOR),
            "outputs": array(TENSOR),
        }
    ),
    "ModelConfig": obj(
        {
            "name": STRING,
            "platform": STRING,
            "backend": STRING,
            "max_batch_size": COUNT,
            "input": array(CONFIGURED),
            "output": array(CONFIGURED),
        },
        required=("name", "platform", "backend", "max_batch_size", "input", "output"),
        closed=False,
    ),
    "ModelStatistics": answer(
        {
            "model_stats": array(
                answer(
                    {
                        "name": STRING,
                        "version": STRING,
                        "last_inference": COUNT,
                        "inference_count": COUNT,
                        "execution_count": COUNT,
                        "inference_stats": answer(
                            dict.fromkeys(
                                (*ModelStatistics().durations(), "cache_hit", "cache_miss"),
                                DURATION,
                            )
                        ),
                        "batch_stats": array(OBJECT),
                    }
                )
            )
        }
    ),
    "RepositoryIndex": array(
        answer(
            {
                "name": STRING,
                "version": STRING,
                "state": one_of(sorted({state for state, _ in MODEL_STATES.values()})),
                "reason": STRING,
            },
            optional=("reason",),
        )
    ),
    "InferResponse": answer(
        {
            "model_name": STRING,
            "model_version": STRING,
            "id": STRING,
            "parameters": OBJECT,
            "outputs": array(OUTPUT),
        },
        optional=("model_version", "id", "parameters"),
    ),
    "GenerateResponse": answer({**GENERATED_HEAD, **GENERATED}, optional=("model_version", "id")),
    "GenerateEvent": either(
        answer(
            {**GENERATED_HEAD, "text": STRING, "text_output": STRING},
            optional=("model_version", "id"),
        ),
        ref("GenerateResponse"),
        ref("Error"),
    ),
}


def operations(settings: Settings) -> dict[tuple[str, str], dict[str, Any]]:
    """What each route takes and answers, by method and path."""
    found = {
        ("get", "/v2"): _answers("Name, version and extensions.", "ServerMetadata"),
        ("get", "/v2/health/live"): _flag("Live", "worth keeping"),
        ("get", "/v2/health/ready"): _flag("Ready", "ready for requests"),
        ("get", "/v2/models"): {
            "responses": {"200": response("Names.", {JSON: answer({"models": array(STRING)})})}
        },
        ("get", "/v2/models/stats"): _answers("Counts and times.", "ModelStatistics"),
        ("post", "/v2/repository/index"): {
            "requestBody": {
                "content": {
                    JSON: {
                        "schema": obj({"ready": BOOLEAN}),
                        "examples": {"those that are ready": {"value": {"ready": True}}},
                    }
                }
            },
            "responses": {
                "200": response("Names with their state.", {JSON: ref("RepositoryIndex")}),
                **errors(400, 408, 413, 415, 500),
            },
        },
    }
    for path in MODEL_PATHS:
        found |= {
            ("get", path): _answers("Versions and tensors.", "ModelMetadata", 404),
            ("get", f"{path}/ready"): _flag("Ready", "ready for requests", 404),
            ("get", f"{path}/config"): _answers("In Triton's form.", "ModelConfig", 404),
            ("get", f"{path}/stats"): _answers("Counts and times.", "ModelStatistics", 404),
            ("post", f"{path}/infer"): _infer(settings),
            ("post", f"{path}/generate"): _generate(
                settings, response("The answer.", {JSON: ref("GenerateResponse")})
            ),
            ("post", f"{path}/generate_stream"): _generate(
                settings,
                response(
                    "Events, one for each piece of text; the last has counts and a finish_reason, "
                    "or is an error.",
                    {EVENT_STREAM: event(ref("GenerateEvent"))},
                ),
            ),
        }
    for (_, path), operation in found.items():
        known = {"model_name": settings.model.names, "version": (VERSION,)}
        operation["parameters"] = [
            in_path(name, one_of(values)) for name, values in known.items() if f"{{{name}}}" in path
        ] + operation.get("parameters", [])
    return found


def _answers(description: str, name: str, *statuses: int) -> dict[str, Any]:
    return {
        "responses": {"200": response(description, {JSON: ref(name)}), **errors(*statuses, 500)}
    }


def _flag(name: str, what: str, *statuses: int) -> dict[str, Any]:
    return {
        "responses": {
            "200": response(f"It is {what}.", {JSON: ref(name)}),
            "503": response(f"It is not {what}.", {JSON: ref(name)}),
            **errors(*statuses),
        }
    }


V2_PARAMETERS: Final[dict[str, Schema]] = {
    **PARAMETERS,
    "priority": PRIORITY,
    "timeout": TIMEOUT_MICROSECONDS,
    "content_type": nullable(one_of(CONTENT_TYPES)),
    "binary_data_output": nullable(BOOLEAN),
    "headers": ANYTHING,
}
# Of sequences and Triton's own, sent by its clients; of no effect here.
OTHERS: Final[dict[str, Schema]] = {"^(sequence_|triton_)": ANYTHING}


def _infer(settings: Settings) -> dict[str, Any]:
    in_tensor = obj({"content_type": nullable(one_of(CONTENT_TYPES)), "binary_data_size": COUNT})
    limit = settings.request.max_batch
    tensor = obj(
        {
            "name": one_of(INPUT_NAMES),
            "datatype": one_of(sorted({spec.datatype for spec in INPUTS})),
            "shape": array(SIZE, minItems=1, maxItems=2),
            "data": array(either(STRING, array(STRING)), maxItems=limit),
            "parameters": nullable(in_tensor),
        },
        required=("name", "datatype", "shape"),
    )
    wanted = obj(
        {
            "name": one_of(OUTPUT_NAMES),
            "parameters": nullable(
                obj({"binary_data": BOOLEAN, "content_type": nullable(one_of(CONTENT_TYPES))})
            ),
        },
        required=("name",),
    )
    schema = obj(
        {
            "id": nullable(STRING),
            "model_name": ANYTHING,
            "model_version": ANYTHING,
            "parameters": nullable(obj(V2_PARAMETERS, patternProperties=OTHERS)),
            "inputs": array(tensor, minItems=1, maxItems=len(INPUTS)),
            "outputs": nullable(array(wanted)),
        },
        required=("inputs",),
    )
    image = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"content_type": "base64"},
        "data": [sample_base64()],
    }
    question = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["What is it?"]}
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "description": "Bytes of JSON before the binary tensor data, where there is any.",
        "schema": COUNT,
    }
    return {
        "parameters": [length],
        **body(
            {JSON: schema, BINARY_TYPE: {"type": "string", "format": "binary"}},
            {
                "a picture": {"inputs": [image]},
                "a question": {
                    "id": "mine",
                    "inputs": [image, question],
                    "outputs": [{"name": "text"}],
                    "parameters": {"max_tokens": 20, "temperature": 0},
                },
            },
        ),
        "responses": {
            "200": response(
                "The outputs that were asked for; binary ones behind the JSON.",
                {
                    JSON: ref("InferResponse"),
                    BINARY_TYPE: {"type": "string", "format": "binary"},
                },
            ),
            **errors(404, *WORK_ERRORS),
        },
    }


def _generate(settings: Settings, answered: dict[str, Any]) -> dict[str, Any]:
    several = {"minItems": 1, "maxItems": settings.request.max_batch}
    prompt = nullable(either(STRING, array(STRING, **several)))
    schema = obj(
        {
            "id": nullable(STRING),
            "image": either(
                STRING,
                array(either(STRING, array(STRING, minItems=1)), **several),
                description="base64, a data: URL, or an http(s) URL where fetching is allowed; a "
                "list is a batch, a list of lists several pictures to a prompt.",
            ),
            "prompt": prompt,
            "text_input": prompt,
            "parameters": nullable(obj(V2_PARAMETERS, patternProperties=OTHERS)),
            **V2_PARAMETERS,
        },
        required=("image",),
        patternProperties=OTHERS,
    )
    return {
        **body(
            {JSON: schema},
            {
                "a picture": {"image": sample_base64()},
                "a question": {
                    "image": sample_base64(),
                    "text_input": "What color is the circle?",
                    "parameters": {"max_tokens": 20},
                },
            },
        ),
        "responses": {"200": answered, **errors(404, *WORK_ERRORS)},
    }
