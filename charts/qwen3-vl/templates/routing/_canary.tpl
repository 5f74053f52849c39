{{/* While `kubectl qwen3vl canary` drives a canary, weights are the cluster's: an upgrade that wrote them anew would throw
     all traffic back, or all of it forward. The tool keeps its state in an annotation; until its phase is a last one, the
     rules are rendered as they are there. Without a cluster (helm template, GitOps) nothing can be looked up: README. */}}

{{/* Whether a canary is being driven: the object that carries its state. */}}
{{- define "qwen3-vl.canaryRuns" -}}
{{- $annotations := (.metadata | default dict).annotations | default dict -}}
{{- with get $annotations "qwen3-vl.io/canary" -}}
{{- if not (has (fromJson .).phase (list "promoted" "rolled-back" "aborted")) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Rules of a route as they are in the cluster, while a canary runs: [root, kind]. Empty: render them. */}}
{{- define "qwen3-vl.liveRules" -}}
{{- $root := index . 0 -}}
{{- $api := "gateway.networking.k8s.io/v1" -}}
{{- $name := include "qwen3-vl.fullname" $root -}}
{{- if include "qwen3-vl.canaryRuns" (lookup $api "HTTPRoute" $root.Release.Namespace $name) -}}
{{- with lookup $api (index . 1) $root.Release.Namespace $name -}}
{{ toYaml .spec.rules }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Knative's canary percent: the cluster's while a canary runs, else the value. */}}
{{- define "qwen3-vl.knativeCanaryPercent" -}}
{{- $percent := .Values.knative.canaryTrafficPercent -}}
{{- $live := lookup "serving.kserve.io/v1beta1" "InferenceService" .Release.Namespace (include "qwen3-vl.fullname" .) -}}
{{- if include "qwen3-vl.canaryRuns" $live -}}
{{- $percent = $live.spec.predictor.canaryTrafficPercent -}}
{{- end -}}
{{- if not (kindIs "invalid" $percent) -}}
{{ int $percent }}
{{- end -}}
{{- end -}}
