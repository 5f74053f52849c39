{{/* The chart's name, or what stands for it. */}}
{{- define "qwen3-vl.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The InferenceService's name. KServe adds -predictor, we add up to 14 characters: 45 keep all within 63. */}}
{{- define "qwen3-vl.fullname" -}}
{{- $name := include "qwen3-vl.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* name, namespace, labels and annotations of an object:
     root, name; optionally part (of its own pods), namespace, labels, annotations. */}}
{{- define "qwen3-vl.metadata" -}}
{{- $root := .root -}}
name: {{ .name }}
namespace: {{ default $root.Release.Namespace .namespace }}
labels:
  helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
  {{- include "qwen3-vl.stableLabels" (list $root (default "" .part)) | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge dict (default dict .annotations) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels without versions: [root, part]. The InferenceService bears only these, as KServe hands its labels on to the
     pods, and with versions in them each release of the chart would restart every GPU pod. */}}
{{- define "qwen3-vl.stableLabels" -}}
{{- $root := index . 0 -}}
{{ include "qwen3-vl.selectorLabels" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: qwen3-vl
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What selectors select: [root, part]. Immutable once installed, so name and instance only; the name of a part with
     pods of its own differs, so that no selector takes another's. */}}
{{- define "qwen3-vl.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "qwen3-vl.name" $root }}{{ with index . 1 }}-{{ . }}{{ end }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- end -}}

{{/* What KServe labels the server's pods with. Never on an object of ours: KServe deletes strangers with its labels. */}}
{{- define "qwen3-vl.podSelector" -}}
app: isvc.{{ include "qwen3-vl.fullname" . }}-predictor
{{- end -}}

{{/* Deployment and Service that KServe makes. */}}
{{- define "qwen3-vl.predictor" -}}
{{ include "qwen3-vl.fullname" . }}-predictor
{{- end -}}

{{/* ConfigMap of the adapter's rules. Releases of several namespaces may share the adapter's: there the release's own
     stands before a dot, which no namespace's name holds. */}}
{{- define "qwen3-vl.adapterRules" -}}
{{- $name := printf "%s-adapter-rules" (include "qwen3-vl.fullname" .) -}}
{{- $own := .Release.Namespace -}}
{{- if eq (default $own .Values.autoscaling.adapter.namespace) $own -}}
{{ $name }}
{{- else -}}
{{ $own }}.{{ $name }}
{{- end -}}
{{- end -}}

{{/* The server inside the cluster, through KServe's Service. */}}
{{- define "qwen3-vl.serviceUrl" -}}
http://{{ include "qwen3-vl.predictor" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* An image's reference: [image, default tag]. */}}
{{- define "qwen3-vl.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default (index . 1) $image.tag }}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "qwen3-vl.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the hub's token, and the one with Redis' URL; empty where there is none. */}}
{{- define "qwen3-vl.hubSecret" -}}
{{- with .Values.model.hub.token -}}
{{- if .existingSecret -}}{{ .existingSecret }}{{- else if .value -}}{{ include "qwen3-vl.fullname" $ }}-hub{{- end -}}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.redisSecret" -}}
{{- with .Values.redis -}}
{{- if .existingSecret -}}{{ .existingSecret }}{{- else if .url -}}{{ include "qwen3-vl.fullname" $ }}-redis{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds from the pod's deletion to SIGKILL. After the drain the server tells stragglers (2 s) and stops gRPC and HTTP (2 s each). */}}
{{- define "qwen3-vl.graceSeconds" -}}
{{- with .Values.shutdown -}}
{{ add (.preStopSeconds | int) (.unreadySeconds | int) (.drainSeconds | int) 10 }}
{{- end -}}
{{- end -}}

{{/* Whether pods need the public internet. */}}
{{- define "qwen3-vl.needsInternet" -}}
{{- if or (eq .Values.model.source "hub") (eq .Values.model.source "storage") .Values.settings.image.url_domains -}}
true
{{- end -}}
{{- end -}}
