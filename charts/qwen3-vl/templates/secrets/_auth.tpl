{{/* The Secret with the clients' keys; empty: none. */}}
{{- define "qwen3-vl.apiKeySecret" -}}
{{- with .Values.auth.apiKeys -}}
{{- if .existingSecret -}}{{ .existingSecret }}{{- else if .keys -}}{{ include "qwen3-vl.fullname" $ }}-api-keys{{- end -}}
{{- end -}}
{{- end -}}

{{- define "qwen3-vl.authenticates" -}}
{{- if or (include "qwen3-vl.apiKeySecret" .) .Values.auth.jwt.issuer -}}
true
{{- end -}}
{{- end -}}
