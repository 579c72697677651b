{{/*
The Job of schedulers/templates/job.yaml.j2, field by field; a test compares them.
*/}}
{{- define "mlip-job.job" -}}
{{- if .Values.ensemble -}}
completionMode: Indexed
completions: {{ int .Values.ensemble }}
parallelism: {{ int .Values.ensemble }}
backoffLimitPerIndex: {{ int .Values.backoffLimit }}
{{- else -}}
backoffLimit: {{ int .Values.backoffLimit }}
{{- end }}
podFailurePolicy:
  rules:
    # Whatever it ended with: it was pre-empted, or its node is drained or gone.
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    # It was stopped, and its checkpoint is stored.
    - action: Ignore
      onExitCodes:
        containerName: mlip-job
        operator: In
        values: [75]
    # A person must look, or the program can't be executed.
    - action: {{ ternary "FailIndex" "FailJob" (not (not .Values.ensemble)) }}
      onExitCodes:
        containerName: mlip-job
        operator: In
        values: [64, 65, 70, 71, 73, 126, 127, 128, 255]
# A pod that is still storing its checkpoint keeps its successor waiting.
podReplacementPolicy: Failed
ttlSecondsAfterFinished: {{ round (mulf .Values.ttlDays 86400) 0 | int64 }}
{{- with .Values.activeDeadlineSeconds }}
activeDeadlineSeconds: {{ int64 . }}
{{- end }}
{{- if .Values.queue }}
suspend: true # Kueue starts it
{{- end }}
template:
  metadata:
    labels:
      {{- include "mlip-job.podLabels" (dict "root" . "component" "training") | nindent 6 }}
    {{- with .Values.annotations }}
    annotations:
      {{- include "mlip-job.texts" . | trim | nindent 6 }}
    {{- end }}
  spec:
    {{- $args := include "mlip-job.args" . | fromYamlArray }}
    {{- include "mlip-job.pod" (dict "root" . "args" $args) | nindent 4 }}
{{- end }}

{{- define "mlip-job.args" -}}
- --config
- /etc/mlip-job/mlip-job.yaml
- run
- --generation
- {{ .Values.generation | int | quote }}
{{- with .Values.ensemble }}
- --of # which member: by the pod's index
- {{ int . | quote }}
{{- end }}
{{- if and (include "mlip-job.gpus" .) .Values.requireGpu }}
- --require-gpu
{{- end }}
{{- range .Values.runOptions }}
- {{ include "mlip-job.literal" . | quote }}
{{- end }}
{{- end }}

{{- define "mlip-job.jobLabels" -}}
{{- include "mlip-job.labels" (dict "root" . "component" "training") }}
{{- with .Values.queue }}
kueue.x-k8s.io/queue-name: {{ . }}
{{- end }}
{{- end }}
