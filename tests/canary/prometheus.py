"""A real Prometheus over files of targets; skipped only where it is missing outside of CI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.serving import free_ports, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# In the folder; Prometheus reads it again whenever it is replaced.
TARGETS = "targets.json"
CONFIGURATION = """
global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: pods
  file_sd_configs: [{{files: [{targets}]}}]
"""


def find_prometheus() -> str:
    """The program; skips where there is none and nobody promised one."""
    program = shutil.which("prometheus")
    if program is None:
        text = "Prometheus is missing: apt-get install prometheus"
        assert not os.environ.get("CI"), text
        pytest.skip(text)
    return program


@contextmanager
def start_prometheus(folder: Path, targets: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """The URL of a Prometheus that scrapes host:port → labels every second."""
    program = find_prometheus()
    files = [{"targets": [one], "labels": dict(labels)} for one, labels in targets.items()]
    (folder / TARGETS).write_text(json.dumps(files))
    configuration = folder / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(targets=folder / TARGETS))
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'series'}",
                f"--web.listen-address=127.0.0.1:{port}",
                # Targets that are written anew: by default it looks each five seconds.
                "--scrape.discovery-reload-interval=500ms",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(lambda: _is_ready(url), "Prometheus is ready")
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").is_success
    except httpx.TransportError:
        return False
