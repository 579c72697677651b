{{/*
The pod of schedulers/templates/job.yaml.j2, in the same order; a test compares them.
root: the release; args: verb and options of mlip-job.
*/}}
{{- define "mlip-job.pod" -}}
{{- $values := .root.Values -}}
{{- $gpus := include "mlip-job.gpus" .root -}}
{{- $claims := list -}}
{{- range $values.claims -}}
{{- $claims = append $claims .claim | uniq -}}
{{- end -}}
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
      - --config
      - /etc/mlip-job/mlip-job.yaml
      {{- range .args }}
      - {{ quote . }}
      {{- end }}
    workingDir: /work
    env:
      - name: HOME
        value: /tmp
      - name: MLIP_JOB_IMAGE
        value: {{ include "mlip-job.literal" (include "mlip-job.image" .root) | quote }}
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
      {{- range $name, $value := $values.env }}
      - name: {{ $name }}
        value: {{ include "mlip-job.literal" $value | quote }}
      {{- end }}
      {{- with $values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- if or $values.existingSecret $values.extraEnvFrom }}
    envFrom:
      {{- with $values.existingSecret }}
      - secretRef:
          name: {{ . }}
      {{- end }}
      {{- with $values.extraEnvFrom }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
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
        {{- with $gpus }}
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
      - name: config
        mountPath: /etc/mlip-job
        readOnly: true
      - name: work
        mountPath: /work
      - name: tmp
        mountPath: /tmp
      - name: shm
        mountPath: /dev/shm
      {{- range $mount := $values.claims }}
      {{- range $position, $claim := $claims }}
      {{- if eq $claim $mount.claim }}
      - name: claim-{{ $position }}
        mountPath: {{ trimSuffix "/" $mount.mountPath | quote }}
        {{- if $mount.readOnly }}
        readOnly: true
        {{- end }}
      {{- end }}
      {{- end }}
      {{- end }}
      {{- with $values.volumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "mlip-job.configMap" .root }}
  - name: work
    emptyDir:
      sizeLimit: {{ $values.workSize }}
  - name: tmp
    emptyDir:
      sizeLimit: 1Gi
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: 1Gi
  {{- range $position, $claim := $claims }}
  - name: claim-{{ $position }} # the claim's own name may be too long
    persistentVolumeClaim:
      claimName: {{ $claim }}
  {{- end }}
  {{- with $values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
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
nodeSelector:
  {{- merge (deepCopy $values.nodeSelector) (dict "kubernetes.io/arch" "amd64") | toYaml | nindent 2 }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or $gpus $values.tolerations }}
tolerations:
  {{- if $gpus }}
  - key: {{ $values.gpuResource }}
    operator: Exists
    effect: NoSchedule
  {{- end }}
  {{- with $values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The kubelet would expand $(NAME). */}}
{{- define "mlip-job.literal" -}}
{{- toString . | replace "$" "$$" -}}
{{- end }}

{{/* Nothing where no GPU is asked for: a linear fit (max_iter: 0) has no use for one. */}}
{{- define "mlip-job.gpus" -}}
{{- $iterations := dig "training" "max_iter" 0 .Values.config | int -}}
{{- if and .Values.gpus (gt $iterations 0) -}}
{{- int64 .Values.gpus -}}
{{- end -}}
{{- end }}
