{{/* What the routes are made of: groups of paths, each with the pool that serves it where there are pools.
     Metadata, jobs and documentation need no choice of pod. /metrics is nobody's outside, and in no group. */}}
{{- define "qwen3-vl.routeGroups" -}}
- name: openai
  generation: true
  exact:
    {{- range $prefix := list "/v1" "/openai/v1" }}
    - {{ $prefix }}/chat/completions
    - {{ $prefix }}/completions
    {{- end }}
- name: v2
  generation: true
  exact:
    {{- range $name := prepend .Values.model.aliases .Values.model.name }}
    {{- range $verb := list "infer" "generate" "generate_stream" }}
    - /v2/models/{{ $name }}/{{ $verb }}
    {{- end }}
    {{- end }}
    - /api/v1/describe
    - /api/v1/batch
- name: other
  generation: false
  exact: [/health, /openapi.json, /docs, /tokenize, /detokenize]
  prefix: [/v2, /v1, /openai, /api]
{{- end -}}

{{/* Whether routes lead to InferencePools. */}}
{{- define "qwen3-vl.usesPools" -}}
{{- if and .Values.routing.enabled (eq .Values.routing.backend "pool") -}}
true
{{- end -}}
{{- end -}}

{{/* Envoy Gateway takes no InferencePool as a backend: there each pool's requests have a route of their own. */}}
{{- define "qwen3-vl.routesPerPool" -}}
{{- if and (include "qwen3-vl.usesPools" .) (eq .Values.routing.gateway.controller "envoy") -}}
true
{{- end -}}
{{- end -}}

{{/* The protocols that have a pool and a picker. */}}
{{- define "qwen3-vl.pools" -}}
{{- if include "qwen3-vl.usesPools" . -}}
- {name: openai, port: 8080, grpc: false}
- {name: v2, port: 8080, grpc: false}
{{- if .Values.routing.grpc.enabled }}
- {name: grpc, port: 8081, grpc: true}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.gatewayName" -}}
{{- default (include "qwen3-vl.fullname" .) .Values.routing.gateway.name -}}
{{- end -}}

{{- define "qwen3-vl.gatewayNamespace" -}}
{{- default .Release.Namespace .Values.routing.gateway.namespace -}}
{{- end -}}

{{/* The listener of a kind of route: [root, http or grpc]. */}}
{{- define "qwen3-vl.listener" -}}
{{- $gateway := (index . 0).Values.routing.gateway -}}
{{- ternary (index . 1) (get $gateway.listeners (index . 1)) $gateway.create -}}
{{- end -}}

{{/* The Gateway and listener that a route hangs on: [root, http or grpc]. */}}
{{- define "qwen3-vl.parentRefs" -}}
{{- $root := index . 0 -}}
- group: gateway.networking.k8s.io
  kind: Gateway
  name: {{ include "qwen3-vl.gatewayName" $root }}
  namespace: {{ include "qwen3-vl.gatewayNamespace" $root }}
  sectionName: {{ include "qwen3-vl.listener" . }}
{{- end -}}

{{/* Matches of a group: exact paths, then prefixes. */}}
{{- define "qwen3-vl.pathMatches" -}}
{{- range .exact }}
- path: {type: Exact, value: {{ . }}}
{{- end }}
{{- range .prefix }}
- path: {type: PathPrefix, value: {{ . }}}
{{- end }}
{{- end -}}

{{/* The backends of a rule, the canary's beside ours where there is one:
     root, pool (empty: KServe's Service), port of the Service. The weight of a backend alone is written out, as the
     cluster and the canary tool do: server-side apply finds a difference, and a conflict, in a default that is left out. */}}
{{- define "qwen3-vl.backendRefs" -}}
{{- $it := . -}}
{{- $canary := .root.Values.routing.canary -}}
{{- $stable := include "qwen3-vl.fullname" .root -}}
{{- $names := list $stable -}}
{{- $weights := dict $stable 1 -}}
{{- if $canary.name -}}
{{- $names = append $names $canary.name -}}
{{- $weights = dict $stable (sub 100 (int $canary.weightPercent)) $canary.name (int $canary.weightPercent) -}}
{{- end -}}
{{- range $names }}
{{- if $it.pool }}
- group: inference.networking.k8s.io
  kind: InferencePool
  name: {{ . }}-{{ $it.pool }}
{{- else }}
- group: ""
  kind: Service
  name: {{ . }}-predictor
  port: {{ $it.port }}
{{- end }}
  weight: {{ get $weights . }}
{{- end }}
{{- end -}}

{{/* Timeouts of a rule, where the controller reads them there: [root, generation]. */}}
{{- define "qwen3-vl.ruleTimeouts" -}}
{{- $routing := (index . 0).Values.routing -}}
{{- if has $routing.gateway.controller (list "envoy" "istio") -}}
timeouts:
  request: {{ ternary $routing.timeouts.generation $routing.timeouts.other (index . 1) }}s
{{- end -}}
{{- end -}}

{{/* The largest body that the server takes, in MiB: gateways must not refuse it before. */}}
{{- define "qwen3-vl.maxBodyMib" -}}
{{- $request := default 67108864 .Values.settings.request.max_body_bytes -}}
{{- $jobs := default 134217728 .Values.settings.jobs.max_body_bytes -}}
{{- divf (max (int64 $request) (int64 $jobs)) 1048576 | ceil | int64 -}}
{{- end -}}

{{/* The kinds and names of all routes that lead to the model. */}}
{{- define "qwen3-vl.routeTargets" -}}
{{- $fullname := include "qwen3-vl.fullname" . -}}
- {group: gateway.networking.k8s.io, kind: HTTPRoute, name: {{ $fullname }}}
{{- if include "qwen3-vl.routesPerPool" . }}
- {group: gateway.networking.k8s.io, kind: HTTPRoute, name: {{ $fullname }}-openai}
- {group: gateway.networking.k8s.io, kind: HTTPRoute, name: {{ $fullname }}-v2}
{{- end }}
{{- if .Values.routing.grpc.enabled }}
- {group: gateway.networking.k8s.io, kind: GRPCRoute, name: {{ $fullname }}}
{{- if include "qwen3-vl.routesPerPool" . }}
- {group: gateway.networking.k8s.io, kind: GRPCRoute, name: {{ $fullname }}-grpc}
{{- end }}
{{- end }}
{{- end -}}
