"""The API server, as far as a canary needs it: JSON, every write against the version read.

The kubernetes package reads the kubeconfig or the pod's own account, and renews its tokens; the
requests are plain HTTP, and the same client reaches Services through the API server's proxy, from
wherever the tool runs.
"""

from __future__ import annotations

import os
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
import kubernetes.client
import kubernetes.config

from model.canary.errors import ClusterError, Conflict, NotFound, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

Object: TypeAlias = dict[str, Any]
T = TypeVar("T")

COMPONENT: Final = "kubectl-qwen3vl"
TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
MAX_ATTEMPTS: Final = 8
# Of what the API server asks for by Retry-After.
MAX_WAIT_SECONDS: Final = 5.0
POD_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object, and where the API server has it. group: empty for the core's."""

    name: str
    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        """As objects say it."""
        return f"{self.group}/{self.version}" if self.group else self.version


HTTP_ROUTE: Final = Kind("HTTPRoute", "gateway.networking.k8s.io", "v1", "httproutes")
GRPC_ROUTE: Final = Kind("GRPCRoute", "gateway.networking.k8s.io", "v1", "grpcroutes")
INFERENCE_SERVICE: Final = Kind(
    "InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices"
)
INFERENCE_POOL: Final = Kind("InferencePool", "inference.networking.k8s.io", "v1", "inferencepools")
DEPLOYMENT: Final = Kind("Deployment", "apps", "v1", "deployments")
SERVICE: Final = Kind("Service", "", "v1", "services")
EVENT: Final = Kind("Event", "", "v1", "events")


class Cluster:
    """One namespace of a cluster. Every method raises ClusterError.

    open_client: gives a client for what is below a path of the API server
    wait: passes so many seconds, where the API server asks to be asked later
    """

    def __init__(
        self,
        open_client: Callable[[str], httpx.Client],
        namespace: str,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._open_client = open_client
        self._wait = wait
        self._client = open_client("")
        self.namespace = namespace

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def get(self, kind: Kind, name: str) -> Object:
        """One object; raises NotFound."""
        return self._call("GET", kind, name)

    def find(self, kind: Kind, name: str) -> Object | None:
        """One object; None where it, or its whole kind, is not there."""
        try:
            return self.get(kind, name)
        except NotFound:
            return None

    def list_all(self, kind: Kind) -> list[Object]:
        """All of a kind; none where the cluster does not know the kind."""
        try:
            return list(self._call("GET", kind)["items"])
        except NotFound:
            return []

    def create(self, kind: Kind, body: Object, *, dry_run: bool = False) -> Object:
        """Make an object; raises Conflict where its name is taken."""
        return self._call("POST", kind, body=body, dry_run=dry_run)

    def replace(self, kind: Kind, body: Object, *, dry_run: bool = False) -> Object:
        """Write an object that was read and changed; raises Conflict where it changed since."""
        assert body["metadata"]["resourceVersion"]
        name = body["metadata"]["name"]
        return self._call("PUT", kind, name, body=body, dry_run=dry_run)

    def edit(self, kind: Kind, name: str, change: Callable[[Object], Object]) -> Object:
        """Read, change and write, again where somebody else wrote meanwhile."""
        return retry(lambda: self._edit_once(kind, name, change))

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object, if it is there."""
        try:
            self._call("DELETE", kind, name)
        except NotFound:
            return

    def record(self, kind: Kind, about: Object, reason: str, message: str, *, bad: bool) -> None:
        """An Event about an object."""
        now = datetime.now(UTC)
        metadata = about["metadata"]
        seconds = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {
            "metadata": {
                "name": f"{metadata['name']}.{int(now.timestamp() * 1e6):x}",
                "namespace": self.namespace,
            },
            "involvedObject": {
                "apiVersion": kind.api_version,
                "kind": kind.name,
                "name": metadata["name"],
                "namespace": self.namespace,
                "uid": metadata.get("uid", ""),
            },
            "reason": reason,
            # The API server refuses longer ones.
            "message": message[:1024],
            "type": "Warning" if bad else "Normal",
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": seconds,
            "lastTimestamp": seconds,
            "count": 1,
        }
        self.create(EVENT, body)

    def service_client(self, name: str, port: str, namespace: str | None = None) -> httpx.Client:
        """A client whose base URL is a Service, reached through the API server."""
        return self._open_client(
            f"api/v1/namespaces/{namespace or self.namespace}/services/{name}:{port}/proxy/"
        )

    def _edit_once(self, kind: Kind, name: str, change: Callable[[Object], Object]) -> Object:
        read = self.get(kind, name)
        changed = change(read)
        return read if changed == read else self.replace(kind, changed)

    def _call(
        self,
        method: str,
        kind: Kind,
        name: str | None = None,
        *,
        body: Object | None = None,
        dry_run: bool = False,
    ) -> Object:
        root = f"apis/{kind.group}" if kind.group else "api"
        path = f"{root}/{kind.version}/namespaces/{self.namespace}/{kind.plural}"
        if name is not None:
            path += f"/{quote(name, safe='')}"
        if body is not None:
            body = {"apiVersion": kind.api_version, "kind": kind.name, **body}
        writes = method in ("POST", "PUT")
        parameters = {"fieldManager": COMPONENT} if writes else {}
        if dry_run:
            parameters["dryRun"] = "All"
        try:
            response = self._ask(method, path, body, parameters)
        except httpx.HTTPError as e:
            raise Unreachable(
                f"the API server at {self._client.base_url} does not answer: "
                f"{str(e) or type(e).__name__}"
            ) from e
        if response.is_success:
            return dict(response.json())
        raise _error(response, f"{method} {kind.plural}{f'/{name}' if name else ''}")

    def _ask(
        self, method: str, path: str, body: Object | None, parameters: dict[str, str]
    ) -> httpx.Response:
        """Its answer; asked again where it has too much to do, or has not begun with a kind yet."""
        for _ in range(MAX_ATTEMPTS - 1):
            response = self._client.request(method, path, json=body, params=parameters)
            seconds = response.headers.get("retry-after", "")
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS or not seconds.isdecimal():
                return response
            self._wait(min(float(seconds), MAX_WAIT_SECONDS))
        return self._client.request(method, path, json=body, params=parameters)


def retry(attempt: Callable[[], T]) -> T:
    """What an attempt gives; it is made anew for as long as others write in between."""
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return attempt()
        except Conflict:
            continue
    return attempt()


def connect(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """The cluster of a kubeconfig, else the one this runs in; raises ClusterError.

    namespace: by default the context's, or the pod's own
    """
    configuration = kubernetes.client.Configuration()
    try:
        if kubeconfig is None and context is None and _in_cluster():
            kubernetes.config.load_incluster_config(configuration)
            default = POD_NAMESPACE.read_text().strip()
        else:
            kubernetes.config.load_kube_config(kubeconfig, context, configuration)
            default = _context_namespace(kubeconfig, context)
    except (kubernetes.config.ConfigException, OSError) as e:
        raise ClusterError(f"no cluster to talk to: {e}") from e
    verify = _ssl_context(configuration)

    def open_client(path: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"{configuration.host.rstrip('/')}/{path}",
            verify=verify,
            auth=_Bearer(configuration),
            timeout=TIMEOUT,
            proxy=configuration.proxy or None,
        )

    return Cluster(open_client, namespace or default)


class _Bearer(httpx.Auth):
    """The kubeconfig's token, if it has one, renewed as its plugin or file says."""

    def __init__(self, configuration: kubernetes.client.Configuration) -> None:
        self._configuration = configuration

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put the token on the request."""
        header = self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
        if header:
            request.headers["Authorization"] = header
        yield request


def _ssl_context(configuration: kubernetes.client.Configuration) -> ssl.SSLContext | bool:
    if not configuration.host.startswith("https:"):
        return True
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _in_cluster() -> bool:
    return POD_NAMESPACE.exists() and "KUBECONFIG" not in os.environ


def _context_namespace(kubeconfig: str | None, context: str | None) -> str:
    contexts, active = kubernetes.config.list_kube_config_contexts(kubeconfig)
    chosen = next((one for one in contexts if one["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def _error(response: httpx.Response, what: str) -> ClusterError:
    try:
        message = str(response.json()["message"])
    except (ValueError, LookupError, TypeError):
        message = f"{response.status_code} {response.reason_phrase}"
    match response.status_code:
        case httpx.codes.NOT_FOUND:
            return NotFound(message)
        case httpx.codes.CONFLICT:
            return Conflict(message)
        case status if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
            return Unreachable(f"{what}: {message}")
        case _:
            return ClusterError(f"{what}: {message}")
