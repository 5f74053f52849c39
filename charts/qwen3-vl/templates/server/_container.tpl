{{/* The model's arguments: where the weights are, and under which names they are served. */}}
{{- define "qwen3-vl.arguments" -}}
{{- $model := .Values.model -}}
- --model_name
- {{ $model.name | quote }}
{{- range $model.aliases }}
- {{ . | quote }}
{{- end }}
{{- if eq $model.source "hub" }}
- --model_id={{ $model.hub.id }}
{{- with $model.hub.revision }}
- --model_revision={{ . }}
{{- end }}
{{- else if ne $model.source "bundled" }}
{{- /* Named even where the server would find it: an empty folder must be an error, not the bundled model. */}}
- --model_dir={{ include "qwen3-vl.modelDir" . }}
{{- end }}
{{- if ne $model.dtype "auto" }}
- --dtype={{ $model.dtype }}
{{- end }}
{{- if ne $model.quantization "none" }}
- --quantization={{ $model.quantization }}
{{- end }}
- --http_port=8080
- --grpc_port=8081
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "qwen3-vl.modelDir" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "path" -}}
{{ $model.path }}
{{- else if eq $model.source "storage" -}}
{{ default "/mnt/models" (index (first $model.storageUris) "mountPath") }}
{{- else -}}
/mnt/models
{{- end -}}
{{- end -}}

{{/* The server's variables: its settings, then what libraries read. */}}
{{- define "qwen3-vl.environment" -}}
- name: QVL_SERVER__UNREADY_SECONDS
  value: {{ .Values.shutdown.unreadySeconds | quote }}
- name: QVL_SERVER__DRAIN_SECONDS
  value: {{ .Values.shutdown.drainSeconds | quote }}
{{- range $section, $fields := .Values.settings }}
{{- range $name, $value := $fields }}
{{- if not (kindIs "invalid" $value) }}
- name: QVL_{{ upper $section }}__{{ upper $name }}
  value: {{ include "qwen3-vl.settingText" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- with include "qwen3-vl.redisSecret" . }}
- name: QVL_JOBS__REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.redis.key }}
{{- end }}
{{- with include "qwen3-vl.uiUrl" . }}
- name: QVL_SERVER__UI_URL
  value: {{ . | quote }}
{{- end }}
{{- if and (eq .Values.model.source "storage") (eq (include "qwen3-vl.usesStorageVariable" .) "true") }}
- name: STORAGE_URI
  value: {{ (first .Values.model.storageUris).uri | quote }}
{{- end }}
{{- if eq .Values.model.source "hub" }}
- name: HF_HOME
  value: /cache
{{- with include "qwen3-vl.hubSecret" . }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.model.hub.token.key }}
{{- end }}
{{- end }}
{{- /* Caches of compiled kernels go below $HOME, and the root filesystem is read-only. */}}
- name: HOME
  value: /tmp
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Lists are JSON in the server's variables; a whole number must not become 3e+07. */}}
{{- define "qwen3-vl.settingText" -}}
{{- if kindIs "slice" . -}}
{{ toJson . }}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* One URI at KServe's own place goes by STORAGE_URI: the only way that its LocalModelCache sees. */}}
{{- define "qwen3-vl.usesStorageVariable" -}}
{{- $uris := .Values.model.storageUris -}}
{{- and (eq (len $uris) 1) (eq (default "/mnt/models" (index (first $uris) "mountPath")) "/mnt/models") -}}
{{- end -}}

{{/* The volumes of the pod and where the server has them: name → {volume, mount}, so that both lists agree. */}}
{{- define "qwen3-vl.volumes" -}}
scratch:
  volume: {emptyDir: {sizeLimit: {{ .Values.scratchSizeLimit }}}}
  mount: {mountPath: /tmp}
{{- if .Values.sharedMemory.enabled }}
shared-memory:
  volume: {emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory.sizeLimit }}}}
  mount: {mountPath: /dev/shm}
{{- end }}
{{- if eq .Values.model.source "pvc" }}
model:
  volume: {persistentVolumeClaim: {claimName: {{ .Values.model.pvc.claimName }}, readOnly: true}}
  mount:
    mountPath: /mnt/models
    readOnly: true
    {{- with .Values.model.pvc.subPath }}
    subPath: {{ . }}
    {{- end }}
{{- end }}
{{- if eq .Values.model.source "hub" }}
hub-cache:
  {{- with .Values.model.hub.cache }}
  {{- if .claimName }}
  volume: {persistentVolumeClaim: {claimName: {{ .claimName }}}}
  {{- else }}
  volume: {emptyDir: {sizeLimit: {{ .sizeLimit }}}}
  {{- end }}
  {{- end }}
  mount: {mountPath: /cache}
{{- end }}
{{- end -}}

{{/* Requests and limits with the devices added: a device's request must equal its limit. */}}
{{- define "qwen3-vl.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.enabled -}}
{{- range $side := list "requests" "limits" -}}
{{- $devices := dict $.Values.gpu.resource (toString (int $.Values.gpu.count)) -}}
{{- $_ := set $resources $side (merge $devices (default dict (get $resources $side))) -}}
{{- end -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{- define "qwen3-vl.securityContext" -}}
{{- $context := deepCopy .Values.securityContext -}}
{{- if and .Values.gpu.enabled .Values.gpu.writableRoot -}}
{{- $_ := set $context "readOnlyRootFilesystem" false -}}
{{- end -}}
{{- if eq .Values.deploymentMode "Knative" -}}
{{- /* Knative takes no pod security context unless a feature flag is on: what a container can carry goes there. */ -}}
{{- $carried := pick .Values.podSecurityContext "runAsNonRoot" "runAsUser" "runAsGroup" "seccompProfile" -}}
{{- $context = merge $context $carried -}}
{{- end -}}
{{ toYaml $context }}
{{- end -}}
