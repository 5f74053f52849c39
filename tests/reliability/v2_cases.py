"""What only V2's own form can get wrong: tensors, binary data, protobuf messages."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Final

from model.serving.contract import NO_SHARED_MEMORY
from model.serving.v2_proto import message_class
from tests.reliability.bodies import Body
from tests.reliability.pictures import PNG
from tests.server.grpc_client import infer_request, prefixed

TEXT: Final = base64.b64encode(PNG).decode()
SHAPES: Final = "it must be [N] or [N, K], integers above 0"
HEADER: Final = "Inference-Header-Content-Length"


def image(**changes: Any) -> dict[str, Any]:
    """A good image input, changed."""
    good = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    return {**good, "parameters": {"content_type": "base64"}, **changes}


def prompt(**changes: Any) -> dict[str, Any]:
    """A good prompt input, changed."""
    return {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["What?"], **changes}


def infer(name: str, message: str, *inputs: Any, **members: Any) -> Body:
    """A case of JSON inputs."""
    content = json.dumps({"inputs": inputs or [image()], **members}).encode()
    return Body(name, content, message)


def without(tensor: dict[str, Any], *members: str) -> dict[str, Any]:
    """The tensor without some of its members."""
    return {key: value for key, value in tensor.items() if key not in members}


def shape(value: Any, shown: str) -> Body:
    """A case of a shape that is none."""
    message = f"input 'image' has shape {shown}; {SHAPES}"
    return infer(f"shape {value!r:.40}", message, image(shape=value))


JSON_CASES: Final = [
    infer("no inputs", "input 'image' is missing", inputs=[]),
    infer("inputs null", "input 'image' is missing", inputs=None),
    infer("inputs an object", "inputs of the request is an object; it must be a list", inputs={}),
    infer("inputs a string", "inputs of the request is a string; it must be a list", inputs="x"),
    infer("an input that is a number", "an input is a number; it must be an object", 5),
    infer("an input that is null", "an input is null; it must be an object", None),
    infer("no name", "unknown input null; known: image, prompt", without(image(), "name")),
    infer("another name", "unknown input 'img'; known: image, prompt", image(name="img")),
    infer("a name that is a list", "unknown input a list of 1; known: …", image(name=["image"])),
    infer("no datatype", "input 'image' has datatype null; it must be 'BYTES'",
          without(image(), "datatype")),
    infer("another datatype", "input 'image' has datatype 'UINT8'; it must be 'BYTES'",
          image(datatype="UINT8")),
    infer("a datatype in lower case", "input 'image' has datatype 'bytes'; it must be 'BYTES'",
          image(datatype="bytes")),
    infer("no shape", f"input 'image' has shape null; {SHAPES}", without(image(), "shape")),
    shape([], "[]"),
    shape([0], "[0]"),
    shape([-1], "[-1]"),
    shape([1.0], "[1.0]"),
    shape(["1"], "['1']"),
    shape([True], "[True]"),
    shape([None], "[None]"),
    shape([[1]], "[[1]]"),
    shape([1, 1, 1], "[1, 1, 1]"),
    shape([1] * 1000, "a list of 1000"),
    shape("1", "'1'"),
    shape(1, "1"),
    shape({}, "an object"),
    infer("a shape of 10^18", "input 'image' has a batch of 1000000000000000000; the limit is 32",
          image(shape=[10**18])),
    infer("a shape over 64 bits", "input 'image' has shape [1e+30]; …", image(shape=[10**30])),
    infer("a batch of 33", "input 'image' has a batch of 33; the limit is 32",
          image(shape=[33], data=[TEXT] * 33)),
    infer("nine pictures a prompt", "input 'image' has 9 images a prompt; the limit is 8",
          image(shape=[1, 9], data=[TEXT] * 9)),
    infer("fewer elements", "input 'image' has 1 elements; its shape [2] calls for 2",
          image(shape=[2])),
    infer("more elements", "input 'image' has 2 elements; its shape [1] calls for 1",
          image(data=[TEXT] * 2)),
    infer("no elements", "input 'image' has 0 elements; its shape [1] calls for 1", image(data=[])),
    infer("data a string", "data of input 'image' is a string; it must be a list",
          image(data=TEXT)),
    infer("data an object", "data of input 'image' is an object; it must be a list",
          image(data={})),
    infer("an element that is a number", "input 'image' element 0 is a number; it must be a string",
          image(data=[5])),
    infer("an element that is null", "input 'image' element 0 is null; it must be a string",
          image(data=[None])),
    infer("data nested for nothing", "data of input 'image' is nested otherwise than its shape [1]",
          image(data=[[TEXT]])),
    infer("rows of other lengths",
          "data of input 'image' is nested otherwise than its shape [2, 2]",
          image(shape=[2, 2], data=[[TEXT, TEXT], [TEXT]])),
    infer("data nested deeper", "input 'image' element 0 is a list; it must be a string",
          image(shape=[1, 1], data=[[[TEXT]]])),
    infer("neither data nor size",
          "input 'image' must have either data or parameters.binary_data_size",
          without(image(), "data")),
    infer("data and size", "input 'image' must have either data or parameters.binary_data_size",
          image(parameters={"binary_data_size": 4})),
    infer("a size without binary data",
          f"binary_data_size of input 'image' is 4; 0 bytes are left; the request has no {HEADER} "
          "header",
          without(image(parameters={"binary_data_size": 4}), "data")),
    *(
        infer(f"a size of {size!r}",
              f"binary_data_size of input 'image' is {shown}; it must be an integer of at least 0",
              without(image(parameters={"binary_data_size": size}), "data"))
        for size, shown in ((-1, "-1"), (1.5, "1.5"), ("4", "'4'"), (True, "true"))
    ),
    infer("the image twice", "input 'image' is given twice", image(), image()),
    infer("a prompt alone", "input 'image' is missing", prompt()),
    infer("prompts for other pictures",
          "input 'prompt' has 2 elements; input 'image' with shape [3] calls for 1 or 3",
          image(shape=[3], data=[TEXT] * 3), prompt(shape=[2], data=["a", "b"])),
    infer("a prompt of two dimensions", "input 'prompt' has shape [1, 1]; it must be [N] or [1], …",
          image(), prompt(shape=[1, 1])),
    infer("a prompt in broken base64", "input 'prompt' element 0 is not valid base64: …",
          image(), prompt(data=["%"], parameters={"content_type": "base64"})),
    infer("a prompt that is no UTF-8", "input 'prompt' element 0 is not UTF-8 (byte 0)",
          image(), prompt(data=["/w=="], parameters={"content_type": "base64"})),
    infer("a member of an input", "unknown member 'dtype' of input 'image'; known: name, …",
          image(dtype="BYTES")),
    infer("a parameter of an input", "unknown parameter 'encoding' of input 'image'; known: …",
          image(parameters={"encoding": "base64"})),
    infer("parameters of an input a list", "parameters of input 'image' is a list; it must be …",
          image(parameters=[])),
    infer("another content type", "content_type of input 'image' is 'hex'; known: base64, str",
          image(parameters={"content_type": "hex"})),
    infer("a content type for all", "content_type of the request is 'hex'; known: base64, str",
          image(parameters={}), parameters={"content_type": "hex"}),
    Body("shared memory", json.dumps({"inputs": [image(
        parameters={"shared_memory_region": "x", "shared_memory_byte_size": 4}
    )]}).encode(), NO_SHARED_MEMORY, 501),
    infer("another output", "unknown output 'logits'; known: text, finish_reason, …",
          outputs=[{"name": "logits"}]),
    infer("an output without a name", "a requested output has no name", outputs=[{}]),
    infer("an output that is a string", "a requested output is a string; it must be an object",
          outputs=["text"]),
    infer("outputs an object", "outputs of the request is an object; it must be a list",
          outputs={"name": "text"}),
    infer("a parameter of an output", "unknown parameter 'classification' of output 'text'; …",
          outputs=[{"name": "text", "parameters": {"classification": 3}}]),
    infer("binary_data a number", "binary_data of output 'text' is 1; it must be true or false",
          outputs=[{"name": "text", "parameters": {"binary_data": 1}}]),
    infer("binary_data_output a string",
          "binary_data_output is 'yes'; it must be true or false",
          parameters={"binary_data_output": "yes"}),
    infer("another member", "unknown member 'input' of the request; known: id, …", input=[]),
    infer("an id that is a number", "id of the request is a number; it must be a string", id=7),
    infer("parameters a list", "parameters of the request is a list; it must be an object",
          parameters=[]),
    infer("a timeout of a year", "timeout is 31536000000000; it must be from 0 to 86400000000 …",
          parameters={"timeout": 365 * 86400 * 10**6}),
]  # fmt: skip


def binary(name: str, raw: bytes, message: str, *, length: object = None, **changes: Any) -> Body:
    """A case of binary data behind the JSON; length: what the header says instead."""
    parameters = {"binary_data_size": len(raw)}
    tensor = {**without(image(), "data"), "parameters": parameters, **changes}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {HEADER: str(len(head) if length is None else length)}
    return Body(name, head + raw, message, 400, headers)


def bad_length(value: object) -> Body:
    """A case of a header that is no length of the JSON."""
    raw = prefixed(PNG)
    message = f"{HEADER} is {value!r}; it must be the number of bytes of JSON, at most the body's …"
    return binary(f"header {value!r}", raw, message, length=value)


LEFT: Final = "input 'image' element 0 claims "
BINARY_CASES: Final = [
    binary("nothing", b"", "input 'image' has 0 elements; its shape [1] calls for 1"),
    binary("half a length", b"\1\0", f"{LEFT}1 bytes; 0 are left"),
    binary("a length alone", b"\4\0\0\0", f"{LEFT}4 bytes; 0 are left"),
    binary("a length over the end", b"\xff\xff\xff\xffPNG", f"{LEFT}4294967295 bytes; 3 are left"),
    binary("a length of other endianness", len(PNG).to_bytes(4, "big") + PNG, f"{LEFT}…"),
    binary("bytes behind it", prefixed(PNG) + b"x",
           "input 'image' has 1 bytes after its last element; its shape [1] calls for 1 elements"),
    binary("an element too many", prefixed(PNG, PNG),
           f"input 'image' has {len(PNG) + 4} bytes after its last element; its shape [1] calls …"),
    binary("an element too few", prefixed(PNG), "input 'image' has 1 elements; its shape [2] …",
           shape=[2]),
    binary("a size below it", prefixed(PNG), "binary_data_size of input 'image' is 99999; …",
           parameters={"binary_data_size": 99999}),
    binary("bytes that nobody claims", prefixed(PNG), "input 'image' has 0 elements; …",
           parameters={"binary_data_size": 0}),
    *(bad_length(value) for value in ("x", "-5", "1e3", "0x10", "99999999", "9" * 30, "")),
    binary("a header of zero", prefixed(PNG), "the request body is empty; it must be …", length=0),
    binary("a header in the middle", prefixed(PNG), "the request body is not valid JSON: …",
           length=10),
]  # fmt: skip


@dataclass(frozen=True)
class Message:
    """A protobuf message and what must be said to it; bytes for what may be none."""

    name: str
    request: Any
    message: str
    code: str = "INVALID_ARGUMENT"

    def __str__(self) -> str:
        return self.name


def message(name: str, said: str, code: str = "INVALID_ARGUMENT", **changes: Any) -> Message:
    """A case of a good request, changed."""
    return Message(name, infer_request(PNG, **changes), said, code)


def tensor(**changes: Any) -> dict[str, Any]:
    """A good image input, changed."""
    return {"name": "image", "datatype": "BYTES", "shape": [1], **changes}


def parameters(**values: dict[str, Any]) -> dict[str, Any]:
    """Request parameters with protobuf's kinds of value."""
    return {"parameters": values}


NOT_PROTOBUF: Final = "the message is no inference.ModelInferRequest"
MESSAGES: Final = [
    message("no model", "model '' is not served here; known: qwen3-vl", "NOT_FOUND", model_name=""),
    message("another version", "version '3' of model 'qwen3-vl' is not served here; …", "NOT_FOUND",
            model_version="3"),
    message("nothing at all", "input 'image' is missing", inputs=[], raw_input_contents=[]),
    message("contents without inputs", "raw_input_contents has 1 entries; the request has 0 inputs",
            inputs=[]),
    message("inputs without contents", "input 'image' has 0 elements; its shape [1] calls for 1",
            raw_input_contents=[]),
    message("two contents", "raw_input_contents has 2 entries; the request has 1 inputs",
            raw_input_contents=[prefixed(PNG)] * 2),
    message("contents in both places", "input 'image' has both contents and raw_input_contents",
            inputs=[tensor(contents={"bytes_contents": [PNG]})]),
    message("contents of another kind", "input 'image' has int_contents; BYTES come in …",
            inputs=[tensor(contents={"int_contents": [1]})], raw_input_contents=[]),
    message("a shape of zero", f"input 'image' has shape [0]; {SHAPES}",
            inputs=[tensor(shape=[0])]),
    message("a negative shape", f"input 'image' has shape [-1]; {SHAPES}",
            inputs=[tensor(shape=[-1])]),
    message("a shape of 2^62", f"input 'image' has a batch of {1 << 62}; the limit is 32",
            inputs=[tensor(shape=[1 << 62])]),
    message("no shape", f"input 'image' has shape []; {SHAPES}", inputs=[tensor(shape=[])]),
    message("another datatype", "input 'image' has datatype 'FP32'; it must be 'BYTES'",
            inputs=[tensor(datatype="FP32")]),
    message("another input", "unknown input 'pixels'; known: image, prompt",
            inputs=[tensor(name="pixels")]),
    message("the image twice", "input 'image' is given twice", inputs=[tensor()] * 2,
            raw_input_contents=[prefixed(PNG)] * 2),
    message("a length over the end", "input 'image' element 0 claims 4294967295 bytes; 0 are left",
            raw_input_contents=[b"\xff\xff\xff\xff"]),
    message("another output", "unknown output 'logits'; known: text, …",
            outputs=[{"name": "logits"}]),
    message("a parameter without a value", "parameter 'max_tokens' of the request has no value",
            **parameters(max_tokens={})),
    message("a prompt that is no UTF-8", "input 'prompt' element 0 is not UTF-8 (byte 1)",
            inputs=[tensor(), {**tensor(), "name": "prompt"}],
            raw_input_contents=[prefixed(PNG), prefixed(b"a\xff")]),
    message("shared memory", NO_SHARED_MEMORY, "UNIMPLEMENTED",
            inputs=[tensor(parameters={"shared_memory_region": {"string_param": "x"}})]),
    Message("no protobuf", b"\xff\xff\xff", NOT_PROTOBUF),
    Message("a field cut short", b"\x0a\xff\x01a", NOT_PROTOBUF),
    Message("a name that is no UTF-8", b"\x0a\x02\xff\xfe", NOT_PROTOBUF),
    Message("a field of another type", b"\x08\x01", "model '' is not served here; …", "NOT_FOUND"),
    Message("100,000 groups", b"\x0b" * 100_000, NOT_PROTOBUF),
    Message("HTTP", b"GET / HTTP/1.1\r\n\r\n", NOT_PROTOBUF),
    Message("another message",
            message_class("ModelMetadataRequest")(name="x", version="y").SerializeToString(),
            "model 'x' is not served here; known: qwen3-vl", "NOT_FOUND"),
]  # fmt: skip
