"""etcd, API server, controller-manager, scheduler and kube-proxy, with the flags they need here."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Final

import httpx

from tests.cluster.machine.addresses import API_PORT, Addresses
from tests.cluster.machine.certificates import Authority, signing_key, write_kubeconfig
from tests.cluster.tools.cache import program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.machine.processes import Processes

READY_SECONDS: Final = 90.0
ETCD: Final = "http://127.0.0.1:2379"
# Autoscalers look once in 15 s by default: too seldom for tests that wait for many decisions.
HPA_SYNC_SECONDS: Final = 1
CONTROL_PLANE: Final = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"),
)
CLIENTS: Final = {
    "admin": ("admin", ("system:masters",)),
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    "proxy": ("system:kube-proxy", ()),
}


def start_control_plane(
    folder: Path, scratch: Path, addresses: Addresses, processes: Processes, nodes: list[str]
) -> None:
    """Start it all; return when the API server is ready.

    folder: certificates and `<client>.kubeconfig` files are written there
    scratch: etcd's data, gone with the machine
    """
    server = f"https://{addresses.machine}:{API_PORT}"
    authority = _write_certificates(folder, addresses)
    for name, (user, groups) in CLIENTS.items():
        client = authority.issue(user, groups=groups)
        client.write(folder, name)
        write_kubeconfig(folder / f"{name}.kubeconfig", server, authority.certificate, client)
    processes.start("etcd", _etcd(scratch))
    processes.start("kube-apiserver", _api_server(folder, addresses))
    _wait_until_ready(folder, server)
    processes.start("kube-controller-manager", _controller_manager(folder, addresses))
    processes.start("kube-scheduler", _scheduler(folder))
    processes.start("kube-proxy", _proxy(folder, addresses, nodes[0]))


def _write_certificates(folder: Path, addresses: Addresses) -> Authority:
    authority, front_proxy = Authority("test-cluster"), Authority("test-front-proxy")
    (folder / "ca.crt").write_bytes(authority.certificate)
    (folder / "front-proxy-ca.crt").write_bytes(front_proxy.certificate)
    service = "kubernetes.default.svc"
    hosts = [
        *(str(addresses.machine), str(addresses.api_service), "localhost", "kubernetes"),
        *("kubernetes.default", service, f"{service}.cluster.local"),
    ]
    authority.issue("kube-apiserver", hosts=hosts).write(folder, "apiserver")
    authority.issue("apiserver-to-nodes", groups=["system:masters"]).write(folder, "to-nodes")
    front_proxy.issue("front-proxy-client").write(folder, "front-proxy")
    node_hosts = [str(addresses.node(index)) for index in range(10)]
    authority.issue("nodes", hosts=node_hosts).write(folder, "nodes")
    private, public = signing_key()
    (folder / "tokens.key").write_bytes(private)
    (folder / "tokens.pub").write_bytes(public)
    return authority


def _etcd(scratch: Path) -> list[str]:
    return [
        str(program("etcd")),
        f"--data-dir={scratch / 'etcd'}",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _api_server(folder: Path, addresses: Addresses) -> list[str]:
    return [
        str(program("kube-apiserver")),
        f"--etcd-servers={ETCD}",
        f"--bind-address={addresses.machine}",
        f"--advertise-address={addresses.machine}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={addresses.services}",
        f"--tls-cert-file={folder / 'apiserver.crt'}",
        f"--tls-private-key-file={folder / 'apiserver.key'}",
        f"--client-ca-file={folder / 'ca.crt'}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={folder / 'tokens.pub'}",
        f"--service-account-signing-key-file={folder / 'tokens.key'}",
        # Aggregated APIs; with the allowed names, since the front proxy's authority is its own.
        f"--requestheader-client-ca-file={folder / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={folder / 'front-proxy.crt'}",
        f"--proxy-client-key-file={folder / 'front-proxy.key'}",
        # Webhooks and aggregated APIs are called at their pods' addresses: no wait for kube-proxy.
        "--enable-aggregator-routing=true",
        f"--kubelet-client-certificate={folder / 'to-nodes.crt'}",
        f"--kubelet-client-key={folder / 'to-nodes.key'}",
        f"--kubelet-certificate-authority={folder / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _controller_manager(folder: Path, addresses: Addresses) -> list[str]:
    kubeconfig = folder / "controller-manager.kubeconfig"
    return [
        str(program("kube-controller-manager")),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={folder / 'tokens.key'}",
        f"--root-ca-file={folder / 'ca.crt'}",
        f"--service-cluster-ip-range={addresses.services}",
        f"--horizontal-pod-autoscaler-sync-period={HPA_SYNC_SECONDS}s",
    ]


def _scheduler(folder: Path) -> list[str]:
    kubeconfig = folder / "scheduler.kubeconfig"
    return [
        str(program("kube-scheduler")),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]


def _proxy(folder: Path, addresses: Addresses, node: str) -> list[str]:
    """One for all nodes: they share the machine's network, and so its rules."""
    return [
        str(program("kube-proxy")),
        f"--kubeconfig={folder / 'proxy.kubeconfig'}",
        f"--hostname-override={node}",
        "--proxy-mode=nftables",
        f"--cluster-cidr={addresses.pods}",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        # Many tests wait for a change of endpoints to take hold: twice a second, not once.
        "--iptables-min-sync-period=100ms",
    ]


def _wait_until_ready(folder: Path, server: str) -> None:
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    trust.load_cert_chain(folder / "admin.crt", folder / "admin.key")
    deadline = time.monotonic() + READY_SECONDS
    last = "no answer"
    with httpx.Client(verify=trust, base_url=server, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                answer = client.get("/readyz")
            except httpx.TransportError as error:
                last = str(error)
            else:
                if answer.is_success:
                    return
                last = answer.text
            time.sleep(0.1)
    raise TimeoutError(f"the API server is not ready after {READY_SECONDS:.0f} s: {last}")
