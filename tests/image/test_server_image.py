"""The server's image on processors: what it says of itself, what it needs, how it stops."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import httpx

from model.demo import CHECKPOINT_DIR, SAMPLES_DIR
from tests.image.conftest import LABELS
from tests.server.grpc_client import Stub, infer_request, text_of
from tests.serving import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.image.conftest import Image
    from tests.image.containers import Container

# Shapes on a beige background: tests/server/test_readme.py asks the same of `make serve`.
SAMPLE = SAMPLES_DIR / "scene-00000.jpg"
SEEN = "on a beige background."
# The project's layer: the wheel, the bundled model's weights most of it.
MAX_PROJECT_BYTES = 40 * 10**6


def describe(container: Container) -> str:
    answer = httpx.post(
        f"{container.http_url}/api/v1/describe",
        files={"image": SAMPLE.read_bytes()},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["description"])


def test_it_describes_a_picture_over_http(served: Container) -> None:
    assert describe(served).endswith(SEEN)


def test_it_describes_a_picture_over_grpc(served: Container) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        answer = Stub(channel).ModelInfer(infer_request(SAMPLE.read_bytes()), timeout=60)
    assert text_of(answer).endswith(SEEN)


def test_it_runs_as_a_user_that_is_a_number_and_not_root(
    cpu_image: Image, served: Container
) -> None:
    # Kubernetes' runAsNonRoot cannot look a name up.
    assert cpu_image.config["User"] == "10001:10001"
    assert served.run("id").stdout.startswith("uid=10001(qwen3-vl) gid=10001(qwen3-vl)")


def test_it_can_write_to_nothing_but_tmp(served: Container) -> None:
    assert "Read-only file system" in served.run("touch", "/opt/venv/file").stderr
    assert served.run("touch", "/tmp/file").returncode == 0
    found = served.run("find", "/", "-xdev", "-writable", "-type", "f", "-not", "-path", "/tmp/*")
    assert found.stdout == ""


def test_it_is_healthy_once_the_model_is_loaded(served: Container) -> None:
    assert served.is_healthy()


def test_it_is_unhealthy_where_no_model_could_be_loaded(cpu_image: Image) -> None:
    with cpu_image.run("--model_dir=/tmp") as container:
        container.wait_until("/metrics")
        assert not container.is_healthy()


def test_its_labels_are_those_of_the_build(cpu_image: Image) -> None:
    assert {name: cpu_image.labels[name.lower()] for name in LABELS} == LABELS
    assert cpu_image.labels["licenses"] == "Apache-2.0"


def test_it_has_compiled_kernels_and_no_compiler(served: Container) -> None:
    assert served.python(
        "from model.runner.native import compiled; print(compiled.load(compiled.LIBRARY))"
    ).startswith("<CDLL ")
    for tool in ("cc", "gcc", "pip", "pip3", "curl"):
        assert served.run("which", tool).returncode == 1


def test_the_project_is_installed_and_not_linked(served: Container) -> None:
    place = served.python("import model; print(model.__file__)")
    assert re.fullmatch(r"/opt/venv/lib/python3\.\d+/site-packages/model/__init__\.py", place)
    assert served.python("import importlib.metadata as m; print(m.version('qwen3-vl-server'))")
    assert served.run("qwen3-vl", "--version").stdout.startswith("qwen3-vl ")


def test_kserves_arguments_and_its_mount_are_honoured(cpu_image: Image) -> None:
    mounted = ("--volume", f"{CHECKPOINT_DIR}:/mnt/models:ro")
    flags = ("--model_name=pictures", "--model_dir=/mnt/models")
    with cpu_image.run(*flags, options=mounted) as container:
        container.wait_until("/v2/models/pictures/ready")
        assert "model      /mnt/models" in container.log()
        assert describe(container).endswith(SEEN)


def test_a_stop_lets_a_stream_end_and_a_start_serves_again(cpu_image: Image) -> None:
    with cpu_image.run() as container:
        container.wait_until("/health")
        with (
            ThreadPoolExecutor(1) as stopper,
            httpx.stream(
                "POST",
                f"{container.http_url}/api/v1/describe",
                files={"image": SAMPLE.read_bytes()},
                data={"max_tokens": "200", "ignore_eos": "true"},
                headers={"Accept": "application/x-ndjson"},
                timeout=60,
            ) as stream,
        ):
            lines = stream.iter_lines()
            assert json.loads(next(lines))["type"] == "start"
            stopping = stopper.submit(container.stop)
            last = json.loads(list(lines)[-1])
            assert (last["type"], last["usage"]["completion_tokens"]) == ("end", 200)
            assert stopping.result() == 0
        assert "Traceback" not in container.log()
        container.start()
        container.wait_until("/health")
        assert describe(container).endswith(SEEN)


def test_a_misspelt_flag_ends_it_with_the_usage_status(cpu_image: Image) -> None:
    with cpu_image.run("--no_such_flag") as container:
        status = container.engine.podman("wait", container.name).stdout.strip()
        assert (status, "--no_such_flag" in container.log()) == ("2", True)


def test_a_change_of_the_code_renews_one_small_layer(cpu_image: Image, tmp_path: Path) -> None:
    context = tmp_path / "context"
    shutil.copytree(ROOT / "model", context / "model")
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, context / name)
    project = context / "pyproject.toml"
    project.write_text(project.read_text().replace("\nversion = ", "\nversion = '9.9.9' #", 1))
    changed = context / "model" / "__init__.py"
    changed.write_text(changed.read_text() + "CHANGED = True\n")
    image = replace(cpu_image, context=context)
    assert image.layers[:-1] == cpu_image.layers[:-1]
    assert image.layers[-1] != cpu_image.layers[-1]
    newest = next(line for line in history(image) if line["size"])
    assert newest["size"] < MAX_PROJECT_BYTES
    with image.run() as container:
        assert container.python("import model; print(model.CHANGED)") == "True"
    image.engine.podman("rmi", image.name)


def history(image: Image) -> list[dict[str, int]]:
    said = image.engine.podman("history", "--format", "json", image.name)
    return list(json.loads(said.stdout))
