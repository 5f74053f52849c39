{{/* Where the server's /ui leads. Behind our routes nobody asks the server for it. */}}
{{- define "qwen3-vl.uiUrl" -}}
{{ .Values.page.url }}
{{- end -}}
