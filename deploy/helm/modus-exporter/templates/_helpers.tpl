{{- define "modus.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 characters: the pods of a StatefulSet get a suffix, and labels end at 63. */}}
{{- define "modus.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "modus.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "modus.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "modus.selector" -}}
app.kubernetes.io/name: {{ include "modus.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "modus.labels" -}}
{{ include "modus.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "modus.config" -}}
{{- $modus := merge (dict "token_file" (printf "/run/secrets/modus/%s" .Values.token.key)) (.Values.config.modus | default dict) -}}
{{- $own := dict "modus" $modus "state" (dict "path" "/var/lib/modus-exporter/modus-exporter.db") -}}
{{- toYaml (merge $own .Values.config) -}}
{{- end -}}
