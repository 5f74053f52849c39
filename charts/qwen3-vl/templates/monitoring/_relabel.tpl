{{/* The one label beside namespace and pod that rules, dashboard, KEDA and the canary tool select by. */}}
{{- define "qwen3-vl.relabelings" -}}
- sourceLabels: [__meta_kubernetes_pod_label_serving_kserve_io_inferenceservice]
  targetLabel: inferenceservice
{{- end -}}
