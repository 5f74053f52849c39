{{/* Contradictions that a schema cannot say. Each message names the values, and what to do. */}}
{{- define "qwen3-vl.validate" -}}
{{- include "qwen3-vl.validateModel" . -}}
{{- include "qwen3-vl.validateLabels" . -}}
{{- include "qwen3-vl.validatePod" . -}}
{{- include "qwen3-vl.validateScaling" . -}}
{{- include "qwen3-vl.validateKnative" . -}}
{{- include "qwen3-vl.validateRouting" . -}}
{{- include "qwen3-vl.validateAuth" . -}}
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

{{/* A label twice on one object is the last one's: selectors would find no pod. */}}
{{- define "qwen3-vl.validateLabels" -}}
{{- $selected := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "serving.kserve.io/inferenceservice" -}}
{{- $refused := dict
  "podLabels" (concat $selected (list "app" "component"))
  "commonLabels" (concat $selected (list "app.kubernetes.io/managed-by" "app.kubernetes.io/part-of" "app.kubernetes.io/version" "helm.sh/chart"))
-}}
{{- range $value, $labels := $refused -}}
{{- range $labels -}}
{{- if hasKey (get $.Values $value) . -}}
{{- fail (printf "%s has %s, which the chart or KServe sets, and finds its objects by: take it out" $value .) -}}
{{- end -}}
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
{{- if .Values.routing.enabled -}}
{{- fail "deploymentMode is Knative, which routes by itself, but routing.enabled is true: set it to false, and exposeByKserve to true" -}}
{{- end -}}
{{- else if not (kindIs "invalid" .Values.knative.canaryTrafficPercent) -}}
{{- fail "knative.canaryTrafficPercent is set, but deploymentMode is Standard, where KServe ignores it: use routing.canary" -}}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.validateRouting" -}}
{{- $routing := .Values.routing -}}
{{- $gateway := $routing.gateway -}}
{{- if $routing.enabled -}}
{{- if .Values.exposeByKserve -}}
{{- fail "routing.enabled and exposeByKserve are both true: two sets of routes for the same paths; take one out" -}}
{{- end -}}
{{- if and (not $gateway.create) (empty $gateway.name) -}}
{{- fail "routing.gateway.create is false: name the Gateway in routing.gateway.name" -}}
{{- end -}}
{{- if and $gateway.create $gateway.namespace (ne $gateway.namespace .Release.Namespace) -}}
{{- fail (printf "routing.gateway.namespace is %s, but the chart makes the Gateway in the release's, %s: take one out" $gateway.namespace .Release.Namespace) -}}
{{- end -}}
{{- if and (include "qwen3-vl.routesPerPool" .) (ne (include "qwen3-vl.gatewayNamespace" .) .Release.Namespace) -}}
{{- fail (printf "routing.backend is pool with controller envoy: its EnvoyPatchPolicy must be in the Gateway's namespace, %s; install the release there, or use routing.backend service" (include "qwen3-vl.gatewayNamespace" .)) -}}
{{- end -}}
{{- if and (not $gateway.create) $routing.tls.secretName -}}
{{- fail "routing.tls is for a Gateway that the chart makes, but routing.gateway.create is false: set TLS at that Gateway" -}}
{{- end -}}
{{- if and $routing.tls.issuer (empty $routing.tls.secretName) -}}
{{- fail "routing.tls.issuer is set: name the Secret that it makes in routing.tls.secretName" -}}
{{- end -}}
{{- if and $gateway.create $routing.grpc.enabled (eq (int $gateway.ports.http) (int $gateway.ports.grpc)) -}}
{{- fail (printf "routing.gateway.ports.http and .grpc are both %d: give each its own" (int $gateway.ports.http)) -}}
{{- end -}}
{{- if and $routing.tls.secretName $routing.tls.redirect (eq (int $gateway.ports.http) 80) -}}
{{- fail "routing.tls.redirect answers on port 80, but routing.gateway.ports.http is 80 too: set it to 443, or the redirect to false" -}}
{{- end -}}
{{- if and (not $gateway.create) $routing.grpc.enabled (eq $gateway.listeners.http $gateway.listeners.grpc) (eq (toJson (default $routing.hostnames $routing.grpc.hostnames)) (toJson $routing.hostnames)) -}}
{{- fail (printf "routing.gateway.listeners.http and .grpc are both %s, and the host names are the same: a listener takes one kind of route a host; name another listener, set routing.grpc.hostnames, or routing.grpc.enabled to false" $gateway.listeners.http) -}}
{{- end -}}
{{- if and $routing.canary.name (include "qwen3-vl.routesPerPool" .) -}}
{{- fail "routing.canary.name is set with pools behind controller envoy, where a picker's choice cannot be weighted: use routing.backend service while there is a canary" -}}
{{- end -}}
{{- if eq $routing.canary.name (include "qwen3-vl.fullname" .) -}}
{{- fail (printf "routing.canary.name is %s, which is this release's own InferenceService" $routing.canary.name) -}}
{{- end -}}
{{- end -}}
{{- if and (int $routing.canary.weightPercent) (empty $routing.canary.name) -}}
{{- fail (printf "routing.canary.weightPercent is %d: name the InferenceService in routing.canary.name" (int $routing.canary.weightPercent)) -}}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.validateAuth" -}}
{{- $auth := .Values.auth -}}
{{- $controller := .Values.routing.gateway.controller -}}
{{- if and $auth.apiKeys.keys $auth.apiKeys.existingSecret -}}
{{- fail "auth.apiKeys has keys and an existingSecret: take one out" -}}
{{- end -}}
{{- if and (include "qwen3-vl.authenticates" .) (not .Values.routing.enabled) -}}
{{- fail "auth is checked at the Gateway, but routing.enabled is false: nobody would check it" -}}
{{- end -}}
{{- if and (include "qwen3-vl.apiKeySecret" .) (ne $controller "envoy") -}}
{{- fail (printf "auth.apiKeys needs routing.gateway.controller envoy; %s checks no keys" $controller) -}}
{{- end -}}
{{- if $auth.jwt.issuer -}}
{{- if not (has $controller (list "envoy" "istio")) -}}
{{- fail (printf "auth.jwt needs routing.gateway.controller envoy or istio; %s checks no tokens" $controller) -}}
{{- else if empty $auth.jwt.jwksUri -}}
{{- fail "auth.jwt.issuer is set: name where its keys are in auth.jwt.jwksUri" -}}
{{- else if and (eq $controller "istio") (not .Values.routing.gateway.create) -}}
{{- fail "auth.jwt with controller istio hangs on the Gateway, and would bind others' routes too: let the chart make the Gateway" -}}
{{- end -}}
{{- end -}}
{{- end -}}
