{{/* What mlip-job submit refuses before it asks the cluster. */}}
{{- define "mlip-job.check" -}}
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
{{- range $limit, $request := dict "cpuLimit" "cpu" "ephemeralStorageLimit" "workSize" -}}
{{- $most := index $.Values $limit -}}
{{- if $most -}}
{{- $least := index $.Values $request -}}
{{- if lt (include "mlip-job.amount" $most | float64) (include "mlip-job.amount" $least | float64) -}}
{{- fail (printf "%s is %v, less than %s, %v: a pod can't reserve more than its limit" $limit $most $request $least) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A quantity as a number: 500m is 0.5, 1Ki is 1024. */}}
{{- define "mlip-job.amount" -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- $factors := dict "n" 1e-9 "u" 1e-6 "m" 1e-3 "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- mulf ($number | float64) (index $factors (trimPrefix $number (toString .))) -}}
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
{{- $mounts := concat .root.Values.claims .root.Values.volumeMounts -}}
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

{{/* s. The last checkpoint and the release of the claim may each take run.stop_timeout. */}}
{{- define "mlip-job.gracePeriodSeconds" -}}
{{- $stop := dig "run" "stop_timeout" 20 .Values.config | float64 -}}
{{- add (mulf 2 $stop | ceil | int) 20 -}}
{{- end }}
