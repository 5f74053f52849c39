"""schemathesis reads /openapi.json and tries to catch the server at something else than it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.serving import start_server

CONFIG: Final = Path(__file__).with_name("schemathesis.toml")
SECONDS: Final = 60


def test_no_generated_request_is_answered_otherwise_than_declared(tmp_path: Path) -> None:
    """Examples, every edge of every schema, then random requests and chains until time is up."""
    with start_server() as server:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
                *("run", f"{server.http_url}/openapi.json"),
                *("--max-time", str(SECONDS), "--max-examples", "5", "--seed", "1"),
                *("--request-timeout", "60", "--no-shrink", "--no-color", "--warnings", "off"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS + 120,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "passed" in ended.stdout
