{{/* Taints that pods bear: the GPU nodes' and the user's. */}}
{{- define "qwen3-vl.tolerations" -}}
{{- $tolerations := .Values.tolerations -}}
{{- with .Values.gpu -}}
{{- if and .enabled .tolerate -}}
{{- $taint := dict "key" .resource "operator" "Exists" "effect" "NoSchedule" -}}
{{- $tolerations = append $tolerations $taint -}}
{{- end -}}
{{- end -}}
{{- with $tolerations -}}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The user's affinity; gpu.products is one more requirement in each of its node selector terms. */}}
{{- define "qwen3-vl.affinity" -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- if and .Values.gpu.enabled .Values.gpu.products -}}
{{- $product := dict "key" "nvidia.com/gpu.product" "operator" "In" "values" .Values.gpu.products -}}
{{- $node := default dict $affinity.nodeAffinity -}}
{{- $required := default dict $node.requiredDuringSchedulingIgnoredDuringExecution -}}
{{- $terms := list -}}
{{- /* Terms are alternatives: a term of its own would let a pod onto any node that another one allows. */ -}}
{{- range default (list dict) $required.nodeSelectorTerms -}}
{{- $expressions := append (default list .matchExpressions) $product -}}
{{- $terms = append $terms (merge (dict "matchExpressions" $expressions) .) -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- with $affinity -}}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What Knative takes only with feature flags on, and the chart therefore leaves out there. */}}
{{- define "qwen3-vl.standardPod" -}}
terminationGracePeriodSeconds: {{ include "qwen3-vl.graceSeconds" . }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .Values.topologySpread }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "qwen3-vl.podSelector" $ | nindent 8 }}
  {{- end }}
{{- end }}
deploymentStrategy:
  type: RollingUpdate
  rollingUpdate:
    {{- toYaml .Values.rollout | nindent 4 }}
{{- end -}}

{{/* Replicas as KServe is told: none where an autoscaler of ours owns them. */}}
{{- define "qwen3-vl.replicas" -}}
{{- if eq .Values.deploymentMode "Knative" -}}
{{- with .Values.knative -}}
minReplicas: {{ .minReplicas }}
maxReplicas: {{ .maxReplicas }}
scaleMetric: {{ .scaleMetric }}
scaleTarget: {{ .scaleTarget }}
containerConcurrency: {{ .containerConcurrency }}
{{- end }}
timeout: {{ include "qwen3-vl.knativeTimeout" . }}
{{- with include "qwen3-vl.knativeCanaryPercent" . }}
canaryTrafficPercent: {{ . }}
{{- end }}
{{- else if eq .Values.autoscaling.mode "none" -}}
minReplicas: {{ .Values.replicas }}
{{- end -}}
{{- end -}}

{{/* Knative's limit for a request is also its grace period; 600 s is its own upper bound by default. */}}
{{- define "qwen3-vl.knativeTimeout" -}}
{{- max 300 (include "qwen3-vl.graceSeconds" . | int) -}}
{{- end -}}
