{{/* A picker's configuration: [root, pool]. OpenAI bodies are read for their beginning, V2's are passed on as they are:
     the picker's default parser refuses them with 400. */}}
{{- define "qwen3-vl.pickerConfig" -}}
{{- $weights := (index . 0).Values.picker.weights -}}
{{- $openai := eq (index . 1).name "openai" -}}
{{- $scorers := list (dict "name" "queue-scorer" "weight" $weights.queue) (dict "name" "kv-cache-utilization-scorer" "weight" $weights.kvCache) (dict "name" "running-requests-size-scorer" "weight" $weights.running) -}}
{{- if $openai -}}
{{- $scorers = append $scorers (dict "name" "prefix-cache-scorer" "weight" $weights.prefix) -}}
{{- end -}}
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: core-metrics-extractor
    parameters:
      defaultEngine: qwen3-vl
      engineConfigs:
        # As for vLLM, less its adapters: a metric that is missing is an error at each poll.
        - name: qwen3-vl
          queuedRequestsSpec: vllm:num_requests_waiting
          runningRequestsSpec: vllm:num_requests_running
          kvUsageSpec: vllm:kv_cache_usage_perc
          cacheInfoSpec: vllm:cache_config_info
  {{- if not $openai }}
  - type: passthrough-parser
  {{- end }}
  {{- range $scorers }}
  - type: {{ .name }}
  {{- end }}
  - type: max-score-picker
{{- if not $openai }}
parser:
  pluginRef: passthrough-parser
{{- end }}
schedulingProfiles:
  - name: default
    plugins:
      {{- range $scorers }}
      - pluginRef: {{ .name }}
        weight: {{ .weight }}
      {{- end }}
      - pluginRef: max-score-picker
{{- end -}}
