"""Which programs an image stands for: nothing is pulled.

A container sees this machine's own root file system; an image adds what its name promises: an entry
point, an environment, files at fixed places. A test may add images of its own (`add_image`).
"""

from __future__ import annotations

import fnmatch
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.cluster.tools.cache import program

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[3]
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ADDED: Final = "images.json"


@dataclass(frozen=True)
class Image:
    """What running an image means here."""

    entrypoint: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"  # the working directory
    user: int = 0
    # Place in the container → what lies there.
    files: dict[str, str] = field(default_factory=dict)


def server_image() -> Image:
    """The project's: this checkout, its environment and its bundled model."""
    binaries = ROOT / ".venv" / "bin"
    return Image(
        entrypoint=(str(binaries / "python"), "-m", "model"),
        environment={
            "PATH": f"{binaries}:{SYSTEM_PATH}",
            # The environment may be installed from another checkout: this one comes first.
            "PYTHONPATH": str(ROOT),
            "HOME": "/tmp",
            # Several pods share two cores; a thread each is what they would get from a quota.
            "OMP_NUM_THREADS": "1",
        },
        folder=str(ROOT),
        user=10001,
    )


def page_image() -> Image:
    """The project's page, in its own environment where that was made."""
    binaries = ROOT / ".venv-ui" / "bin"
    return Image(
        entrypoint=(str(binaries / "python"), "-m", "model.ui"),
        environment={"PATH": f"{binaries}:{SYSTEM_PATH}", "PYTHONPATH": str(ROOT), "HOME": "/tmp"},
        folder=str(ROOT),
        user=10001,
    )


def _program_at(place: str, name: str, *, user: int = 65532) -> Callable[[], Image]:
    """An image that holds one program and runs it."""

    def image() -> Image:
        return Image(entrypoint=(place,), files={place: str(program(name))}, user=user)

    return image


def _envoy() -> Image:
    return Image(
        entrypoint=("/usr/local/bin/envoy",),
        files={"/usr/local/bin/envoy": str(program("envoy"))},
        user=65532,
    )


def _host() -> Image:
    """A small general image: this machine's own programs."""
    return Image(entrypoint=())


# The first pattern that fits the name without registry and tag counts.
IMAGES: Final[dict[str, Callable[[], Image]]] = {
    "*qwen3-vl*-ui": page_image,
    "*qwen3-vl*": server_image,
    "*kserve-controller": _program_at("/manager", "kserve-controller"),
    "*gateway-api-inference-extension/epp": _program_at("/epp", "epp"),
    "*llm-d-router-endpoint-picker": _program_at("/epp", "epp"),
    "*envoyproxy/gateway": _program_at("/usr/local/bin/envoy-gateway", "envoy-gateway"),
    "*envoyproxy/envoy": _envoy,
    "*prometheus-adapter": _program_at("/adapter", "prometheus-adapter"),
    "*kedacore/keda": _program_at("/keda", "keda-operator"),
    "*kedacore/keda-metrics-apiserver": _program_at("/keda-adapter", "keda-adapter"),
    "*prom/prometheus": lambda: Image(entrypoint=("/usr/bin/prometheus",), user=65534),
    "*busybox": _host,
    "*debian": _host,
    "*kubectl": lambda: Image(
        entrypoint=("/bin/kubectl",), files={"/bin/kubectl": str(program("kubectl"))}
    ),
}


def find_image(folder: Path, reference: str) -> Image | None:
    """The image of this name, or None: it cannot be pulled."""
    added = _added(folder)
    if reference in added:
        return added[reference]
    name = _without_tag(reference)
    for pattern, image in IMAGES.items():
        if fnmatch.fnmatch(name, pattern):
            return image()
    return None


def add_image(folder: Path, reference: str, image: Image) -> None:
    """Let nodes of the machine in `folder` know another image, by its full reference."""
    images = {name: asdict(one) for name, one in _added(folder).items()}
    images[reference] = asdict(image)
    partial = folder / f"{ADDED}.{os.getpid()}"
    partial.write_text(json.dumps(images))
    partial.replace(folder / ADDED)


def _added(folder: Path) -> dict[str, Image]:
    path = folder / ADDED
    if not path.exists():
        return {}
    return {
        name: Image(
            **one | {"entrypoint": tuple(one["entrypoint"]), "arguments": tuple(one["arguments"])}
        )
        for name, one in json.loads(path.read_text()).items()
    }


def _without_tag(reference: str) -> str:
    """`registry:5000/a/b:tag@sha256:…` → `registry:5000/a/b`."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
