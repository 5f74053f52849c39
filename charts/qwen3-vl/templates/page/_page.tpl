{{/* Where the server's /ui leads; empty: nowhere. */}}
{{- define "qwen3-vl.uiUrl" -}}
{{- end -}}
