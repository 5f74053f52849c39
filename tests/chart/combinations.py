"""Values that people combine, by what they want; each is rendered, validated and applied somewhere.

The chart's own values-*.yaml are among them.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from tests.chart.helm import CHART

Values = dict[str, Any]

HUB: Final[Values] = {"source": "hub", "hub": {"id": "Qwen/Qwen3-VL-8B-Instruct"}}
GPU: Final[Values] = {"enabled": True, "products": ["NVIDIA-L4", "NVIDIA-L40S"]}
TARGETS: Final[Values] = {"gpuUtilizationPercent": 90, "gpuMemoryUsedMib": 22000}
KEYS: Final[Values] = {"apiKeys": {"keys": {"alice": "a-key-of-more-than-20-letters"}}}
TOKENS: Final[Values] = {
    "jwt": {
        "issuer": "https://login.example.com",
        "jwksUri": "https://login.example.com/keys",
        "audiences": ["vision"],
    }
}


def routing(controller: str, backend: str = "service", **more: Any) -> Values:
    """Values that route by a controller."""
    return {
        "enabled": True,
        "backend": backend,
        "gateway": {"controller": controller, **more.pop("gateway", {})},
        **more,
    }


def files() -> dict[str, Values]:
    """The values-*.yaml of the chart, by their names."""
    return {
        path.stem: yaml.safe_load(path.read_text()) for path in sorted(CHART.glob("values-*.yaml"))
    }


COMBINATIONS: Final[dict[str, Values]] = {
    "nothing set": {},
    "a hub model on a GPU": {"model": HUB, "gpu": GPU},
    "a private hub model in a shared cache": {
        "model": {
            "source": "hub",
            "hub": {
                "id": "acme/private",
                "revision": "8f3a2c1",
                "token": {"value": "hf_secret"},
                "cache": {"claimName": "weights"},
            },
        },
    },
    "a model from a bucket, read by a cloud identity": {
        "model": {"source": "storage", "storageUris": [{"uri": "s3://models/qwen3-vl"}]},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}},
    },
    "a model in an image": {
        "model": {"source": "storage", "storageUris": [{"uri": "oci://registry.example/m:1"}]},
    },
    "several buckets": {
        "model": {
            "source": "storage",
            "storageUris": [
                {"uri": "gs://a/base", "mountPath": "/mnt/models/base"},
                {"uri": "gs://a/more", "mountPath": "/mnt/models/more"},
            ],
        },
    },
    "a claim with weights": {
        "model": {"source": "pvc", "pvc": {"claimName": "weights", "subPath": "8b"}}
    },
    "a folder of an extra volume": {
        "model": {"source": "path", "path": "/nfs/8b"},
        "extraVolumes": [{"name": "nfs", "nfs": {"server": "nfs.example", "path": "/models"}}],
        "extraVolumeMounts": [{"name": "nfs", "mountPath": "/nfs", "readOnly": True}],
    },
    "four bits on a slice of a GPU": {
        "model": {**HUB, "quantization": "bitsandbytes-4bit", "dtype": "bfloat16"},
        "gpu": {"enabled": True, "resource": "nvidia.com/mig-3g.40gb", "tolerate": False},
    },
    "two GPUs, a writable root and a runtime class": {
        "gpu": {"enabled": True, "count": 2, "writableRoot": True},
        "runtimeClassName": "nvidia",
        "sharedMemory": {"sizeLimit": "8Gi"},
        "rollout": {"maxSurge": 0, "maxUnavailable": 1},
    },
    "every setting's section": {
        "settings": {
            "model": {"device": "cpu"},
            "engine": {"max_sequences": 8, "kv_cache_bytes": 2147483648, "prefix_cache": False},
            "image": {"url_domains": ["*.example.com"], "url_ports": [443]},
            "request": {"max_body_bytes": 33554432},
            "jobs": {"max_pictures": 100},
            "server": {"cors_origins": ["https://app.example.com"]},
        },
    },
    "jobs in Redis": {
        "redis": {"url": "redis://redis.data.svc:6379/0"},
        "networkPolicy": {"extraEgress": [{"ports": [{"port": 6379, "protocol": "TCP"}]}]},
    },
    "no network policy, no budget, no spread, somebody else's account": {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "topologySpread": False,
        "sharedMemory": {"enabled": False},
        "serviceAccount": {"create": False, "name": "runner"},
    },
    "placed, prioritised and labelled": {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"app": "other"}},
                        },
                    }
                ]
            }
        },
        "priorityClassName": "system-cluster-critical",
        "commonLabels": {"team": "vision"},
        "commonAnnotations": {"owner": "vision@example.com"},
        "podLabels": {"cost": "a"},
        "podAnnotations": {"note": "b"},
        "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["registry"]},
    },
    "extra variables and manifests": {
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraArgs": ["--engine.block-size=32"],
        "extraManifests": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "{{ .Release.Name }}-extra"},
                "data": {"model": "{{ .Values.model.name }}"},
            }
        ],
    },
    "an HPA on the queue": {"autoscaling": {"mode": "hpa"}},
    "an HPA on GPUs and the queue": {
        "gpu": GPU,
        "autoscaling": {"mode": "hpa", "targets": TARGETS, "adapter": {"namespace": "default"}},
    },
    "KEDA": {"gpu": GPU, "autoscaling": {"mode": "keda", "targets": TARGETS}},
    "KEDA down to nothing": {
        "autoscaling": {
            "mode": "keda",
            "minReplicas": 0,
            "keda": {"wakeQuery": "sum(rate(inference_objective_request_error_total[1m]))"},
        },
    },
    "Knative": {"deploymentMode": "Knative", "exposeByKserve": True},
    "Knative with a canary": {
        "deploymentMode": "Knative",
        "knative": {"canaryTrafficPercent": 10, "scaleMetric": "rps"},
    },
    "KServe's own routes": {"exposeByKserve": True},
    "routes of Envoy to the Service": {"routing": routing("envoy")},
    "routes of Envoy to pools": {"routing": routing("envoy", "pool"), "picker": {"replicas": 1}},
    "keys at Envoy": {"routing": routing("envoy", "pool"), "auth": KEYS},
    "tokens at Envoy": {"routing": routing("envoy"), "auth": TOKENS},
    "pools of Istio with tokens": {"routing": routing("istio", "pool"), "auth": TOKENS},
    "pools of NGINX": {"routing": routing("nginx", "pool", timeouts={"generation": 600})},
    "pools of GKE": {"routing": routing("gke", "pool")},
    "TLS by cert-manager": {
        "routing": routing(
            "envoy",
            hostnames=["vision.example.com"],
            gateway={"ports": {"http": 443, "grpc": 8443}},
            tls={"secretName": "vision-tls", "issuer": "letsencrypt", "clusterIssuer": True},
        ),
    },
    "somebody else's Gateway, HTTP only": {
        "routing": routing(
            "istio",
            gateway={"create": False, "name": "shared", "namespace": "infra"},
            grpc={"enabled": False},
        ),
    },
    "a stable release with its canary": {
        "routing": routing("istio", "pool", canary={"name": "photos-canary", "weightPercent": 5}),
    },
    "the page": {"page": {"enabled": True, "replicas": 2}, "routing": routing("nginx")},
    "everything that watches": {
        "gpu": GPU,
        "monitoring": {
            "monitor": "PodMonitor",
            "labels": {"release": "prometheus"},
            "rules": {"enabled": True, "alertLabels": {"team": "vision"}},
            "dashboard": {"enabled": True},
        },
        "routing": routing("envoy", "pool"),
    },
    "a ServiceMonitor": {"monitoring": {"monitor": "ServiceMonitor"}},
    "long names": {"fullnameOverride": "q" * 45, "routing": routing("envoy", "pool")},
}
