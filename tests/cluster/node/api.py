"""The API server as JSON over HTTPS: get, write, and follow what changes."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

Json: TypeAlias = dict[str, Any]
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
TIMEOUT: Final = httpx.Timeout(30.0)
WATCH_TIMEOUT: Final = httpx.Timeout(30.0, read=330.0)
AGAIN_SECONDS: Final = 0.5


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """A client with the certificate of a kubeconfig; usable by several threads."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        trust = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]))
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "crt"), Path(folder, "key")
            certificate.write_text(_decoded(user["client-certificate-data"]))
            key.write_text(_decoded(user["client-key-data"]))
            trust.load_cert_chain(certificate, key)
        self._client = httpx.Client(
            base_url=cluster["server"],
            verify=trust,
            timeout=TIMEOUT,
            trust_env=False,
            limits=httpx.Limits(max_connections=200, max_keepalive_connections=20),
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def get(self, path: str, **parameters: str) -> Json:
        """An object or a list."""
        return self._asked("GET", path, parameters=parameters)

    def find(self, path: str) -> Json | None:
        """An object, or None where there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return None
            raise

    def create(self, path: str, body: Json) -> Json:
        """Create an object in the collection at `path`."""
        return self._asked("POST", path, body)

    def patch(self, path: str, body: Json, kind: str = MERGE) -> Json:
        """Change an object."""
        return self._asked("PATCH", path, body, kind=kind)

    def delete(self, path: str, body: Json) -> None:
        """Delete an object."""
        self._asked("DELETE", path, body)

    def follow(self, path: str, on_change: Callable[[str, Json], None], **parameters: str) -> None:
        """Call `on_change(type, object)` for all that is there and all that happens; never return.

        type: ADDED (also for what was there at a start over), MODIFIED or DELETED
        """
        known: dict[str, Json] = {}
        while True:
            try:
                listed = self.get(path, **parameters)
                now = {one["metadata"]["uid"]: one for one in listed.get("items") or ()}
                for uid in known.keys() - now.keys():
                    on_change("DELETED", known[uid])
                for one in now.values():
                    on_change("ADDED", one)
                known = now
                version = listed["metadata"]["resourceVersion"]
                self._watch(path, parameters | {"resourceVersion": version}, known, on_change)
            except (httpx.HTTPError, ApiError, json.JSONDecodeError):
                time.sleep(AGAIN_SECONDS)

    def _watch(
        self,
        path: str,
        parameters: dict[str, str],
        known: dict[str, Json],
        on_change: Callable[[str, Json], None],
    ) -> None:
        asked = parameters | {"watch": "1", "timeoutSeconds": "300"}
        with self._client.stream("GET", path, params=asked, timeout=WATCH_TIMEOUT) as answer:
            if not answer.is_success:
                raise ApiError(answer.status_code, "watch refused")
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":  # the version is too old: list again
                    return
                uid = event["object"]["metadata"]["uid"]
                if event["type"] == "DELETED":
                    known.pop(uid, None)
                else:
                    known[uid] = event["object"]
                on_change(event["type"], event["object"])

    def _asked(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        kind: str = "application/json",
        parameters: dict[str, str] | None = None,
    ) -> Json:
        content = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": kind}
        answer = self._client.request(
            method, path, params=parameters, content=content, headers=headers
        )
        if not answer.is_success:
            raise ApiError(answer.status_code, answer.text[:1000])
        result: Json = answer.json()
        return result


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
