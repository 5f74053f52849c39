{{/* Knative's canary percent: what the cluster has while a canary is being driven, else the value. */}}
{{- define "qwen3-vl.knativeCanaryPercent" -}}
{{- $percent := .Values.knative.canaryTrafficPercent -}}
{{- if not (kindIs "invalid" $percent) -}}
{{ int $percent }}
{{- end -}}
{{- end -}}
