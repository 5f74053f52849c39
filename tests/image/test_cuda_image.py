"""The image for NVIDIA GPUs, as far as a machine without one can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.image.conftest import LABELS

if TYPE_CHECKING:
    from tests.image.conftest import Image

# What Triton does with its binding of the driver, on the first step on a GPU.
COMPILE = """
from triton.runtime.build import compile_module_from_src as compile
source = '''
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "probe"};
PyMODINIT_FUNC PyInit_probe(void) { return PyModule_Create(&module); }
'''
print(compile(source, "probe").__name__)
"""


def test_triton_can_compile_in_it(cuda_image: Image) -> None:
    with cuda_image.run() as container:
        assert container.python(COMPILE) == "probe"


def test_it_has_torch_for_cuda_and_asks_for_the_driver(cuda_image: Image) -> None:
    with cuda_image.run() as container:
        assert container.python("import torch; print(torch.version.cuda is not None)") == "True"
    asked = {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"}
    assert asked <= {*cuda_image.config["Env"]}


def test_it_is_the_same_server_and_serves_where_no_gpu_is(cuda_image: Image) -> None:
    assert cuda_image.config["User"] == "10001:10001"
    assert cuda_image.labels["revision"] == LABELS["REVISION"]
    with cuda_image.run() as container:
        container.wait_until("/health")
        assert container.is_healthy()
        assert "device     cpu" in container.log()
