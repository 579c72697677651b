{{/*
The pod of schedulers/templates/job.yaml.j2, field by field; a test compares them.
root: the release; component: its label; args: of mlip-job.
*/}}
{{- define "mlip-job.pod" -}}
{{- $values := .root.Values -}}
restartPolicy: Never
terminationGracePeriodSeconds: {{ include "mlip-job.gracePeriodSeconds" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
  {{- with $values.runAsUser }}
  runAsUser: {{ int64 . }}
  runAsGroup: {{ int64 . }}
  fsGroup: {{ int64 . }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
containers:
  - name: mlip-job
    image: {{ include "mlip-job.image" .root | quote }}
    imagePullPolicy: IfNotPresent
    args:
      {{- range .args }}
      - {{ quote . }}
      {{- end }}
    workingDir: /work
    env:
      {{- include "mlip-job.env" .root | nindent 6 }}
    {{- with include "mlip-job.envFrom" .root | fromYamlArray }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    resources:
      requests:
        cpu: {{ $values.cpu | toString | quote }}
        memory: {{ $values.memory }}
        ephemeral-storage: {{ $values.workSize }}
      limits:
        {{- with $values.cpuLimit }}
        cpu: {{ toString . | quote }}
        {{- end }}
        memory: {{ $values.memory }}
        {{- with $values.ephemeralStorageLimit }}
        ephemeral-storage: {{ . }}
        {{- end }}
        {{- with include "mlip-job.gpus" .root }}
        {{ $values.gpuResource }}: {{ . | quote }}
        {{- end }}
    securityContext:
      allowPrivilegeEscalation: false
      capabilities:
        drop: [ALL]
      readOnlyRootFilesystem: true
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts:
      {{- include "mlip-job.volumeMounts" .root | nindent 6 }}
volumes:
  {{- include "mlip-job.volumes" .root | nindent 2 }}
{{- with include "mlip-job.serviceAccount" .root }}
serviceAccountName: {{ . }}
{{- end }}
{{- with $values.runtimeClass }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $values.priorityClass }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with include "mlip-job.nodeSelector" .root | fromYaml }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "mlip-job.tolerations" .root | fromYamlArray }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The kubelet would expand $(NAME). */}}
{{- define "mlip-job.literal" -}}
{{- toString . | replace "$" "$$" -}}
{{- end }}

{{- define "mlip-job.env" -}}
- name: HOME
  value: /tmp
- name: MLIP_JOB_IMAGE
  value: {{ include "mlip-job.literal" (include "mlip-job.image" .) | quote }}
- name: MLIP_JOB_KUBERNETES_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: MLIP_JOB_KUBERNETES_JOB
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['batch.kubernetes.io/job-name']
- name: MLIP_JOB_KUBERNETES_JOB_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['batch.kubernetes.io/controller-uid']
- name: MLIP_JOB_CORES # rounded up
  valueFrom:
    resourceFieldRef:
      resource: requests.cpu
      divisor: "1"
- name: MLIP_JOB_TERMINATION_MESSAGE
  value: /dev/termination-log
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  value: {{ include "mlip-job.literal" $value | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "mlip-job.envFrom" -}}
{{- $sources := .Values.extraEnvFrom -}}
{{- with .Values.existingSecret -}}
{{- $sources = prepend $sources (dict "secretRef" (dict "name" .)) -}}
{{- end -}}
{{- toYaml $sources -}}
{{- end }}

{{/* Labels of a node that can run the image. */}}
{{- define "mlip-job.nodeSelector" -}}
{{- $selector := deepCopy .Values.nodeSelector -}}
{{- with .Values.architecture -}}
{{- $selector = merge $selector (dict "kubernetes.io/arch" .) -}}
{{- end -}}
{{- toYaml $selector -}}
{{- end }}

{{/* Nothing where no GPU is asked for: a linear fit (max_iter: 0) has no use for one. */}}
{{- define "mlip-job.gpus" -}}
{{- $iterations := dig "training" "max_iter" 0 .Values.config | int -}}
{{- if and .Values.gpus (gt $iterations 0) -}}
{{- int64 .Values.gpus -}}
{{- end -}}
{{- end }}

{{- define "mlip-job.tolerations" -}}
{{- $tolerations := .Values.tolerations -}}
{{- if include "mlip-job.gpus" . -}}
{{- $tolerations = prepend $tolerations (dict "key" .Values.gpuResource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- toYaml $tolerations -}}
{{- end }}

{{/* A claim is one volume however often it is mounted; its own name may be too long for one. */}}
{{- define "mlip-job.claimNames" -}}
{{- $names := list -}}
{{- range .Values.claims -}}
{{- $names = append $names .claim -}}
{{- end -}}
{{- uniq $names | toYaml -}}
{{- end }}

{{- define "mlip-job.volumes" -}}
- name: config
  configMap:
    name: {{ include "mlip-job.configMap" . }}
- name: work
  emptyDir:
    sizeLimit: {{ .Values.workSize }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: 1Gi
{{- range $position, $name := include "mlip-job.claimNames" . | fromYamlArray }}
- name: claim-{{ $position }}
  persistentVolumeClaim:
    claimName: {{ $name }}
{{- end }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "mlip-job.volumeMounts" -}}
{{- $names := include "mlip-job.claimNames" . | fromYamlArray -}}
- name: config
  mountPath: /etc/mlip-job
  readOnly: true
- name: work
  mountPath: /work
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- range $mount := .Values.claims }}
{{- range $position, $name := $names }}
{{- if eq $name $mount.claim }}
- name: claim-{{ $position }}
  mountPath: {{ trimSuffix "/" $mount.mountPath | quote }}
  {{- if $mount.readOnly }}
  readOnly: true
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
