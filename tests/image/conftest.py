"""The images, built once a session, and a container of the server that most tests share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.image.containers import Engine, missing, storage_folder
from tests.image.torch_mounts import torch_mounts
from tests.serving import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.image.containers import Container

SERVER_PORTS: Final = ("QVL_SERVER__HTTP_PORT", "QVL_SERVER__GRPC_PORT")
PAGE_PORTS: Final = ("QWEN3VL_UI_PORT",)
LABELS: Final = {
    "VERSION": "9.8.7",
    "REVISION": "0123456789abcdef",
    "SOURCE": "https://example.com/qwen3-vl",
}


@dataclass(frozen=True)
class Image:
    """A target that was built.

    ports: the variables that it reads its ports from, HTTP's first
    volumes: options for what is lent to it, built and run
    """

    engine: Engine
    target: str
    ports: tuple[str, ...]
    volumes: tuple[str, ...] = ()
    context: Path = ROOT

    @cached_property
    def name(self) -> str:
        """Its id; the first use builds it."""
        return self.engine.build(self.target, LABELS, volumes=self.volumes, context=self.context)

    def run(self, *flags: str, options: tuple[str, ...] = ()) -> AbstractContextManager[Container]:
        """A container of it, with these flags for its entry point and these options for podman."""
        options = (*self.volumes, *options)
        return self.engine.run(self.name, *flags, ports=self.ports, options=options)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What a container of it starts with."""
        return dict(self.engine.inspect(self.name)["Config"])

    @property
    def labels(self) -> dict[str, str]:
        """The OCI labels, by their short names."""
        prefix = "org.opencontainers.image."
        return {name.removeprefix(prefix): text for name, text in self.config["Labels"].items()}

    @property
    def layers(self) -> list[str]:
        """Digests of its layers, the base first."""
        return list(self.engine.inspect(self.name)["RootFS"]["Layers"])

    @property
    def num_bytes(self) -> int:
        """Its layers unpacked."""
        return int(self.engine.inspect(self.name)["Size"])


@pytest.fixture(scope="session")
def engine() -> Engine:
    """buildah and podman, with the base that all targets share."""
    if lacking := missing():
        pytest.fail("\n".join(["make image-test cannot run here:", *lacking]), pytrace=False)
    made = Engine(storage_folder())
    made.make_base()
    # Before anything is lent: its mount points would stay here, and be in the page's image too.
    made.build("base", {})
    return made


@pytest.fixture(scope="session")
def cpu_image(engine: Engine) -> Image:
    """The server for processors."""
    return Image(engine, "cpu", SERVER_PORTS, torch_mounts())


@pytest.fixture(scope="session")
def cuda_image(engine: Engine) -> Image:
    """The server for NVIDIA GPUs."""
    return Image(engine, "cuda", SERVER_PORTS, torch_mounts())


@pytest.fixture(scope="session")
def page_image(engine: Engine) -> Image:
    """The page."""
    return Image(engine, "ui", PAGE_PORTS)


@pytest.fixture(scope="module")
def served(cpu_image: Image) -> Iterator[Container]:
    """The bundled model, ready; ended by no test."""
    with cpu_image.run() as container:
        container.wait_until("/health")
        yield container
