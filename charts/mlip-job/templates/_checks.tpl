{{/* What mlip-job submit refuses before it asks the cluster. */}}
{{- define "mlip-job.check" -}}
{{- if and .Values.template.enabled (not (kindIs "invalid" .Values.generation)) -}}
{{- fail "generation and template.enabled exclude each other: a template is for all generations" -}}
{{- end -}}
{{- if and .Values.externalSecret.enabled .Values.existingSecret -}}
{{- fail "existingSecret and externalSecret.enabled exclude each other" -}}
{{- end -}}
{{- if regexMatch "[\\x{feff}\\x{fffe}\\x{ffff}]" (include "mlip-job.configuration" .) -}}
{{- fail "config has characters that YAML files can't have" -}}
{{- end -}}
{{- include "mlip-job.exact" (dict "path" "" "value" .Values) -}}
{{- $database := dig "database" "url" "structures.db" .Values.config -}}
{{- if eq (include "mlip-job.visibility" (dict "root" . "url" $database)) "hidden" -}}
{{- fail (printf "config.database.url %s is a file that pods don't see: use PostgreSQL or MySQL, or a claim that it lies on" $database) -}}
{{- end -}}
{{- $store := dig "storage" "url" "store" .Values.config -}}
{{- $visibility := include "mlip-job.visibility" (dict "root" . "url" $store) -}}
{{- if eq $visibility "hidden" -}}
{{- fail (printf "config.storage.url %s is a directory that pods don't see: use s3://bucket/prefix, or a claim that it lies on" $store) -}}
{{- else if eq $visibility "read-only" -}}
{{- fail (printf "config.storage.url %s lies on a volume that is mounted read-only" $store) -}}
{{- end -}}
{{- end }}

{{/* Fail where a whole number is too large for a float64, as which Helm reads it from a file. */}}
{{- define "mlip-job.exact" -}}
{{- if kindIs "map" .value -}}
{{- range $name, $value := .value -}}
{{- include "mlip-job.exact" (dict "path" (printf "%s.%s" $.path $name) "value" $value) -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- range $value := .value -}}
{{- include "mlip-job.exact" (dict "path" $.path "value" $value) -}}
{{- end -}}
{{- else if kindIs "float64" .value -}}
{{- if or (ge .value 9007199254740992.0) (le .value -9007199254740992.0) -}}
{{- $path := trimPrefix "." .path -}}
{{- fail (printf "%s: Helm can't hold this number exactly, it became %.0f: write it in quotes, give it with --set-string %s=NUMBER, or choose one below 9007199254740992" $path .value $path) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* "server", "visible", "read-only" or "hidden": what pods see of a URL. */}}
{{- define "mlip-job.visibility" -}}
{{- $url := .url -}}
{{- if and (contains "://" $url) (not (hasPrefix "file://" $url)) -}}
server
{{- else -}}
{{- $path := trimPrefix "file://" $url -}}
{{- $found := "hidden" -}}
{{- $mounts := concat (include "mlip-job.claims" .root | fromYamlArray) .root.Values.volumeMounts -}}
{{- range $mounts -}}
{{- $directory := trimSuffix "/" .mountPath -}}
{{- if and $directory (or (eq $path $directory) (hasPrefix (print $directory "/") $path)) -}}
{{- if not .readOnly -}}
{{- $found = "visible" -}}
{{- else if eq $found "hidden" -}}
{{- $found = "read-only" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}
{{- end }}

{{/* The claims that are mounted, with the release's own behind them. */}}
{{- define "mlip-job.claims" -}}
{{- $claims := .Values.claims -}}
{{- with .Values.persistence -}}
{{- if .enabled -}}
{{- $claims = append $claims (dict "claim" (include "mlip-job.claim" $) "mountPath" .mountPath) -}}
{{- end -}}
{{- end -}}
{{- toYaml $claims -}}
{{- end }}

{{/* s. The last checkpoint and the release of the claim may each take run.stop_timeout. */}}
{{- define "mlip-job.gracePeriodSeconds" -}}
{{- $stop := dig "run" "stop_timeout" 20 .Values.config | float64 -}}
{{- if kindIs "invalid" .Values.gracePeriodSeconds -}}
{{- add (mulf 2 $stop | ceil | int) 20 -}}
{{- else -}}
{{- $least := add (ceil $stop | int) 5 -}}
{{- if lt (.Values.gracePeriodSeconds | int64) $least -}}
{{- fail (printf "gracePeriodSeconds is %d, but storing a checkpoint may take %d s" (.Values.gracePeriodSeconds | int) (int $least)) -}}
{{- end -}}
{{- .Values.gracePeriodSeconds | int -}}
{{- end -}}
{{- end }}
