{{/* Name of the Job and of all that belongs to it: family and generation, as mlip-job names them. */}}
{{- define "mlip-job.name" -}}
mlip-{{ include "mlip-job.family" . }}-{{ include "mlip-job.generation" . | replace "_" "-" }}
{{- end }}

{{- define "mlip-job.family" -}}
{{- required "config.family is required: the potential's name" .Values.config.family -}}
{{- end }}

{{/* gen_04 for 4 */}}
{{- define "mlip-job.generation" -}}
{{- printf "gen_%02d" (required "generation is required" .Values.generation | int) -}}
{{- end }}

{{/* A changed configuration is another ConfigMap, since those that run may read it again. */}}
{{- define "mlip-job.configMap" -}}
{{- printf "%s-%s" (include "mlip-job.name" .) (include "mlip-job.configuration" . | sha256sum | trunc 8) -}}
{{- end }}

{{/* As JSON, which is YAML: it has no second way to write a number, and no text that looks like one. */}}
{{- define "mlip-job.configuration" -}}
{{- merge (dict "work_dir" "/work") .Values.config | toPrettyJson -}}
{{- end }}

{{- define "mlip-job.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "mlip-job.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "mlip-job.image" -}}
{{- $repository := required "image.repository is required: the image of mlip-job" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{/* Labels by which the pods of a release are found. */}}
{{- define "mlip-job.selectorLabels" -}}
app.kubernetes.io/name: mlip-job
app.kubernetes.io/instance: {{ .Release.Name | quote }}
mlip-job/family: {{ include "mlip-job.family" . | quote }}
mlip-job/generation: {{ include "mlip-job.generation" . | quote }}
{{- end }}

{{/* Labels of a pod; those of a Job's can't be changed, so the chart's version is none of them. */}}
{{- define "mlip-job.podLabels" -}}
{{- $own := include "mlip-job.selectorLabels" .root | fromYaml -}}
{{- $own = merge $own (dict
  "app.kubernetes.io/component" .component
  "app.kubernetes.io/part-of" (include "mlip-job.family" .root)
  "app.kubernetes.io/managed-by" .root.Release.Service) -}}
{{- merge $own .root.Values.labels | toYaml -}}
{{- end }}

{{/* Labels of everything else. */}}
{{- define "mlip-job.labels" -}}
{{- $own := include "mlip-job.podLabels" . | fromYaml -}}
{{- merge (dict
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version)) $own | toYaml -}}
{{- end }}

{{/* Annotations. Unlike toYaml, this copes with every text. */}}
{{- define "mlip-job.texts" -}}
{{- range $name, $text := . }}
{{ quote $name }}: {{ quote $text }}
{{- end }}
{{- end }}
