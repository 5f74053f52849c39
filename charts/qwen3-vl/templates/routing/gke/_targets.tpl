{{/* What the load balancer's policies hang on: KServe's Service, and the pools. */}}
{{- define "qwen3-vl.gkeTargets" -}}
- {group: "", kind: Service, name: {{ include "qwen3-vl.predictor" . }}}
{{- range include "qwen3-vl.pools" . | fromYamlArray }}
- {group: inference.networking.k8s.io, kind: InferencePool, name: {{ include "qwen3-vl.fullname" $ }}-{{ .name }}}
{{- end }}
{{- end -}}
