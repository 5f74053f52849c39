{{/* The metrics that scale, those whose target is set: a list of {metric, target, gpu}. */}}
{{- define "qwen3-vl.scalingMetrics" -}}
{{- $targets := .Values.autoscaling.targets -}}
{{- $table := list
  (dict "value" "queuedSequences" "metric" "qwen3vl_queued_sequences")
  (dict "value" "runningSequences" "metric" "qwen3vl_running_sequences")
  (dict "value" "kvCacheUsedRatio" "metric" "qwen3vl_kv_cache_used_ratio")
  (dict "value" "gpuUtilizationPercent" "metric" "DCGM_FI_DEV_GPU_UTIL" "gpu" true)
  (dict "value" "gpuMemoryUsedMib" "metric" "DCGM_FI_DEV_FB_USED" "gpu" true)
-}}
{{- $found := list -}}
{{- range $table -}}
{{- $target := index $targets .value -}}
{{- if not (kindIs "invalid" $target) -}}
{{- $found = append $found (dict "metric" .metric "target" $target "gpu" (default false .gpu)) -}}
{{- end -}}
{{- end -}}
{{ toYaml $found }}
{{- end -}}

{{/* A number as a Kubernetes quantity: 0.8 is 800m, and whole numbers stay as they are. */}}
{{- define "qwen3-vl.quantity" -}}
{{- if eq (float64 .) (floor .) -}}
{{ int64 . }}
{{- else -}}
{{ int64 (round (mulf . 1000) 0) }}m
{{- end -}}
{{- end -}}

{{/* PromQL: the sum over this model's pods, each pod's GPUs averaged: [root, {metric, gpu}]. */}}
{{- define "qwen3-vl.scalingQuery" -}}
{{- $root := index . 0 -}}
{{- $it := index . 1 -}}
{{- if $it.gpu -}}
{{- $labels := $root.Values.autoscaling.dcgm -}}
sum(avg by ({{ $labels.podLabel }}) ({{ $it.metric }}{ {{- $labels.namespaceLabel }}="{{ $root.Release.Namespace }}",{{ $labels.podLabel }}=~"{{ include "qwen3-vl.predictor" $root }}-.+"}))
{{- else -}}
sum({{ $it.metric }}{{ include "qwen3-vl.ownSeries" $root }})
{{- end -}}
{{- end -}}

{{/* The label matchers of this model's own series; PodMonitor and ServiceMonitor see to these labels. */}}
{{- define "qwen3-vl.ownSeries" -}}
{namespace="{{ .Release.Namespace }}",inferenceservice="{{ include "qwen3-vl.fullname" . }}"}
{{- end -}}

{{/* A trigger of KEDA: [root, PromQL, threshold]. Any value above 0 keeps a first pod. */}}
{{- define "qwen3-vl.kedaTrigger" -}}
{{- $root := index . 0 -}}
type: prometheus
metricType: AverageValue
metadata:
  serverAddress: {{ $root.Values.autoscaling.keda.serverAddress }}
  query: {{ index . 1 | quote }}
  threshold: {{ index . 2 | toString | quote }}
  activationThreshold: "0"
{{- with $root.Values.autoscaling.keda.authenticationRef }}
authenticationRef:
  name: {{ . }}
{{- end }}
{{- end -}}
