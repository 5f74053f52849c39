"""atheris on the parser of V2's binary tensors: `python -m … [planted] LIBFUZZER-FLAGS CORPUS`.

Bodies are refused as an InvalidRequest, or the request has the elements that the body holds.
planted: with a fault that few inputs meet.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["model.serving"]):
    from model.serving import v2_codec

from model.errors import InvalidRequest
from model.serving.v2_tensors import LENGTH_PREFIX_BYTES, Limits

# What a body of a few KiB may make the process hold: a MemoryError beyond it is a fault found.
MEMORY_BYTES = 2 << 30
LIMITS = Limits(max_batch=32, max_images=8)
# The first byte of an input: the rest is a whole body, or binary data behind a JSON that fits it.
WHOLE, FRAMED = b"w", b"f"


def check(data: bytes) -> None:
    """Parse what an input stands for."""
    kind, first, rest = data[:1], data[1:3], data[3:]
    if kind == FRAMED:
        # As many elements as the first two bytes say, in one row or several.
        tensor = {"name": "image", "datatype": "BYTES", "shape": [one for one in first if one]}
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(rest)}}]})
        parse(head.encode() + rest, len(head))
    else:
        # The first two bytes say where the JSON ends.
        parse(rest, int.from_bytes(first, "little"))


def parse(body: bytes, border: int) -> None:
    """Parse a body; raises anything but InvalidRequest where the parser is wrong."""
    try:
        request = v2_codec.decode_request(body, str(border), model_name="m", limits=LIMITS)
    except InvalidRequest:
        return
    for tensor in request.inputs:
        parameters = tensor.parameters or {}
        if "binary_data_size" in parameters and "content_type" not in parameters:
            num_bytes = sum(LENGTH_PREFIX_BYTES + len(element) for element in tensor.data)
            assert num_bytes == parameters["binary_data_size"]
            assert all(element in body for element in tensor.data)


def plant() -> None:
    """Make the parser trip over an element of exactly three bytes."""
    original = v2_codec.split_elements

    def broken(raw: memoryview, header: Any) -> Any:
        tensor = original(raw, header)
        if any(len(element) == 3 for element in tensor.elements):
            raise IndexError("planted")
        return tensor

    v2_codec.split_elements = broken


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    if "planted" in sys.argv:
        sys.argv.remove("planted")
        plant()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
