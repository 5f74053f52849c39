"""One cluster for all tests of a session; each further part of it starts when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.components.adapter import Adapter, install_adapter
from tests.cluster.components.dcgm import Exporter, Gpus
from tests.cluster.components.gateway import GatewayController, install_gateway
from tests.cluster.components.keda import install_keda
from tests.cluster.components.kserve import KServe, install_kserve
from tests.cluster.components.prometheus import Prometheus, install_prometheus
from tests.cluster.machine.outside import running_machine
from tests.cluster.tools.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane and two nodes (`node-1`, `node-2`); see `Cluster` for what it can do."""
    lacking = missing(running=True)
    if lacking:
        pytest.fail("\n".join(["the cluster tests cannot run here:", *lacking]), pytrace=False)
    with running_machine(tmp_path_factory.mktemp("cluster")) as machine:
        running = Cluster(machine)
        yield running
        running.api.close()
        assert machine.lost == [], "these ended by themselves"


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own; gone, with all its pods, when the test ends."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture(scope="session")
def kserve(cluster: Cluster) -> KServe:
    """KServe's controller and webhooks in namespace `kserve`, mode Standard by default.

    The CRDs of the Gateway API, the inference extension, Knative and KEDA are there too, since it
    decides by them at its start what it watches.
    """
    return install_kserve(cluster)


@pytest.fixture(scope="session")
def gateway(cluster: Cluster, kserve: KServe) -> GatewayController:
    """Envoy Gateway in `envoy-gateway-system`, GatewayClass `envoy`; see `create` and `address`.

    After KServe, whose CRDs of the Gateway API it shares.
    """
    del kserve
    return install_gateway(cluster)


@pytest.fixture(scope="session")
def prometheus(cluster: Cluster) -> Prometheus:
    """Prometheus in namespace `monitoring`: every ready pod of the server, each second."""
    return install_prometheus(cluster)


@pytest.fixture(scope="session")
def adapter(cluster: Cluster, prometheus: Prometheus) -> Adapter:
    """prometheus-adapter in namespace `monitoring`; it runs from `read_rules` on."""
    assert prometheus.url
    return install_adapter(cluster)


@pytest.fixture(scope="session")
def keda(cluster: Cluster, prometheus: Prometheus) -> None:
    """KEDA's operator and metrics server in namespace `keda`."""
    assert prometheus.url
    install_keda(cluster)


@pytest.fixture(scope="session")
def gpus(cluster: Cluster, prometheus: Prometheus) -> Iterator[Gpus]:
    """A stand-in for DCGM exporter, scraped by Prometheus; `share` says how busy GPUs are."""
    exporter = Gpus(cluster, "dcgm-exporter")
    exporter.start()
    with prometheus.configured(jobs=[exporter.job()]):
        yield exporter


@pytest.fixture(scope="session")
def gateway_figures(cluster: Cluster, prometheus: Prometheus) -> Iterator[Exporter]:
    """A stand-in for a gateway's metrics, scraped by Prometheus; `write` says what they are."""
    exporter = Exporter(cluster, "gateway-figures")
    exporter.start()
    with prometheus.configured(jobs=[exporter.job()]):
        yield exporter
