{{/* The windows of burn rates, and how they alert (Google's SRE workbook, chapter 5): a fast burn in both windows wakes
     somebody, a slow one is a ticket. */}}
{{- define "qwen3-vl.burnRates" -}}
- {long: 1h, short: 5m, factor: 14.4, severity: critical, for: 2m}
- {long: 6h, short: 30m, factor: 6, severity: critical, for: 15m}
- {long: 1d, short: 2h, factor: 3, severity: warning, for: 1h}
- {long: 3d, short: 6h, factor: 1, severity: warning, for: 3h}
{{- end -}}

{{/* The objectives: a recorded ratio of what was bad, and the share that may be. */}}
{{- define "qwen3-vl.objectives" -}}
{{- $slo := .Values.monitoring.rules.slo -}}
- name: errors
  alert: Qwen3VLErrorBudgetBurns
  what: requests end in an error
  budget: {{ subf 1 $slo.availability | toString | trunc 10 }}
  promised: {{ $slo.availability }}
- name: slow_first_tokens
  alert: Qwen3VLFirstTokenBudgetBurns
  what: first tokens take longer than {{ $slo.firstTokenSeconds }} s
  budget: {{ subf 1 $slo.firstTokenRatio | toString | trunc 10 }}
  promised: {{ $slo.firstTokenRatio }}
- name: slow_tokens
  alert: Qwen3VLInterTokenBudgetBurns
  what: tokens follow later than {{ $slo.interTokenSeconds }} s
  budget: {{ subf 1 $slo.interTokenRatio | toString | trunc 10 }}
  promised: {{ $slo.interTokenRatio }}
{{- end -}}

{{/* The label matchers of this model, without braces, to add others to. */}}
{{- define "qwen3-vl.matchers" -}}
namespace="{{ .Release.Namespace }}",inferenceservice="{{ include "qwen3-vl.fullname" . }}"
{{- end -}}

{{/* A bucket's bound as the server writes it: 1.0, 2.5. */}}
{{- define "qwen3-vl.bound" -}}
{{- if eq (float64 .) (floor .) -}}
{{ printf "%.1f" (float64 .) }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* PromQL: the share of observations above a bound: [root, metric, bound, window]. */}}
{{- define "qwen3-vl.slowRatio" -}}
{{- $own := include "qwen3-vl.matchers" (index . 0) -}}
{{- $metric := index . 1 -}}
{{- $window := index . 3 -}}
1 - sum by (namespace, inferenceservice) (rate({{ $metric }}_bucket{ {{- $own }},le="{{ include "qwen3-vl.bound" (index . 2) }}"}[{{ $window }}]))
  / sum by (namespace, inferenceservice) (rate({{ $metric }}_count{ {{- $own }}}[{{ $window }}]))
{{- end -}}

{{- define "qwen3-vl.recordingRules" -}}
{{- $own := include "qwen3-vl.matchers" . -}}
{{- $slo := .Values.monitoring.rules.slo -}}
{{- range $window := list "5m" "30m" "1h" "2h" "6h" "1d" "3d" }}
- record: inferenceservice:qwen3vl_errors:ratio_rate{{ $window }}
  # Not those that the client itself went away from.
  expr: |
    sum by (namespace, inferenceservice) (rate(qwen3vl_finished_sequences_total{ {{- $own }},finish_reason="error"}[{{ $window }}]))
      / sum by (namespace, inferenceservice) (rate(qwen3vl_finished_sequences_total{ {{- $own }},finish_reason!="cancelled"}[{{ $window }}]))
- record: inferenceservice:qwen3vl_slow_first_tokens:ratio_rate{{ $window }}
  expr: |
    {{- include "qwen3-vl.slowRatio" (list $ "qwen3vl_time_to_first_token_seconds" $slo.firstTokenSeconds $window) | nindent 4 }}
- record: inferenceservice:qwen3vl_slow_tokens:ratio_rate{{ $window }}
  expr: |
    {{- include "qwen3-vl.slowRatio" (list $ "qwen3vl_inter_token_latency_seconds" $slo.interTokenSeconds $window) | nindent 4 }}
{{- end }}
{{- end -}}

{{/* An alert: root, name, expr, for, severity, summary, description; optionally labels. */}}
{{- define "qwen3-vl.alert" -}}
- alert: {{ .name }}
  expr: |
    {{- .expr | trim | nindent 4 }}
  for: {{ .for }}
  labels:
    severity: {{ .severity }}
    {{- with merge dict (default dict .labels) .root.Values.monitoring.rules.alertLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    summary: {{ .summary | quote }}
    description: {{ .description | quote }}
{{- end -}}
