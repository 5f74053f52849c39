{{/* Contradictions that a schema cannot say. Each message names the values, and what to do. */}}
{{- define "qwen3-vl.validate" -}}
{{- include "qwen3-vl.validateModel" . -}}
{{- include "qwen3-vl.validatePod" . -}}
{{- include "qwen3-vl.validateScaling" . -}}
{{- include "qwen3-vl.validateKnative" . -}}
{{- end -}}

{{- define "qwen3-vl.validateModel" -}}
{{- $model := .Values.model -}}
{{- if and (eq $model.source "storage") (empty $model.storageUris) -}}
{{- fail "model.source is storage: name what to fetch in model.storageUris" -}}
{{- else if and (eq $model.source "hub") (empty $model.hub.id) -}}
{{- fail "model.source is hub: name the model in model.hub.id" -}}
{{- else if and (eq $model.source "pvc") (empty $model.pvc.claimName) -}}
{{- fail "model.source is pvc: name the claim in model.pvc.claimName" -}}
{{- else if and (eq $model.source "path") (empty $model.path) -}}
{{- fail "model.source is path: name the folder in model.path" -}}
{{- end -}}
{{- range $source, $value := dict "storage" $model.storageUris "hub" $model.hub.id "pvc" $model.pvc.claimName "path" $model.path -}}
{{- if and $value (ne $source $model.source) -}}
{{- fail (printf "model.source is %s, but a model of source %s is named too: set model.source to %s, or take the name out" $model.source $source $source) -}}
{{- end -}}
{{- end -}}
{{- $places := list -}}
{{- range $model.storageUris -}}
{{- $places = append $places (default "" .mountPath) -}}
{{- end -}}
{{- if and (gt (len $places) 1) (lt (len (compact (uniq $places))) (len $places)) -}}
{{- fail "model.storageUris has several entries: each needs its own mountPath, all below one folder" -}}
{{- end -}}
{{- with $model.hub.token -}}
{{- if and .value .existingSecret -}}
{{- fail "model.hub.token has a value and an existingSecret: take one out" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.validatePod" -}}
{{- if and .Values.redis.url .Values.redis.existingSecret -}}
{{- fail "redis has a url and an existingSecret: take one out" -}}
{{- end -}}
{{- if and (include "qwen3-vl.redisSecret" .) .Values.networkPolicy.enabled (empty .Values.networkPolicy.extraEgress) -}}
{{- fail "redis is set, but the network policy lets nobody reach it: add it to networkPolicy.extraEgress, or set networkPolicy.enabled to false" -}}
{{- end -}}
{{- if and (eq (toString .Values.rollout.maxSurge) "0") (eq (toString .Values.rollout.maxUnavailable) "0") -}}
{{- fail "rollout.maxSurge and rollout.maxUnavailable are both 0: no pod could ever be replaced" -}}
{{- end -}}
{{- if eq (toString .Values.podDisruptionBudget.maxUnavailable) "0" -}}
{{- fail "podDisruptionBudget.maxUnavailable is 0: no node of this model could ever be drained" -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasPrefix "QVL_" (upper .name) -}}
{{- fail (printf "extraEnv has %s: set it in settings, where its name and type are checked" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.validateScaling" -}}
{{- $it := .Values.autoscaling -}}
{{- if ne $it.mode "none" -}}
{{- if gt (int $it.minReplicas) (int $it.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %d, but maxReplicas %d" (int $it.minReplicas) (int $it.maxReplicas)) -}}
{{- end -}}
{{- if empty (include "qwen3-vl.scalingMetrics" . | fromYamlArray) -}}
{{- fail "autoscaling.targets are all null: set one, or autoscaling.mode to none" -}}
{{- end -}}
{{- if eq (int $it.minReplicas) 0 -}}
{{- if eq $it.mode "hpa" -}}
{{- fail "autoscaling.minReplicas is 0: an HPA cannot, use autoscaling.mode keda" -}}
{{- else if empty $it.keda.wakeQuery -}}
{{- fail "autoscaling.minReplicas is 0: pods that are not there have no metrics; set autoscaling.keda.wakeQuery to what the gateway or the picker tells (README, Scale to zero)" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.validateKnative" -}}
{{- if eq .Values.deploymentMode "Knative" -}}
{{- if ne .Values.autoscaling.mode "none" -}}
{{- fail (printf "deploymentMode is Knative, which scales by itself (values: knative), but autoscaling.mode is %s: set it to none" .Values.autoscaling.mode) -}}
{{- end -}}
{{- else if not (kindIs "invalid" .Values.knative.canaryTrafficPercent) -}}
{{- fail "knative.canaryTrafficPercent is set, but deploymentMode is Standard, where KServe ignores it: use routing.canary" -}}
{{- end -}}
{{- end -}}
