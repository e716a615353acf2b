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

{{- define "modus.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "modus.fullname" .) "default" .Values.serviceAccount.create) -}}
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

{{/* Labels and annotations of an object: (list $ labels annotations), to which those of all objects are added. */}}
{{- define "modus.metadata" -}}
{{- $values := (index . 0).Values -}}
labels:
  {{- merge (include "modus.labels" (index . 0) | fromYaml) (index . 1) $values.commonLabels | toYaml | nindent 2 }}
{{- with merge (dict) (index . 2) $values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "modus.config" -}}
{{- $modus := .Values.config.modus | default dict -}}
{{- if .Values.token.secretName -}}
{{- $modus = merge (dict "token_file" (printf "/run/secrets/modus/%s" .Values.token.key)) $modus -}}
{{- end -}}
{{- $state := dict "path" "/var/lib/modus-exporter/modus-exporter.db" -}}
{{- with .Values.state -}}
{{- if .url -}}
{{- $state = dict "url" .url -}}
{{- if .passwordSecret.name -}}
{{- $state = dict "url" .url "password_file" "/run/secrets/modus-database/password" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $own := dict "modus" $modus "state" $state -}}
{{- toYaml (merge $own .Values.config) -}}
{{- end -}}

{{- define "modus.scheme" -}}
{{- ternary "https" "http" (and (ne .Values.webConfig.secretName "") .Values.webConfig.tls) -}}
{{- end -}}

{{/*
A probe: (list $ its-values page). A handler in the values stays. Else the page is asked for; where scrapers need a
password or a certificate, which the kubelet has not, the port alone is.
*/}}
{{- define "modus.probe" -}}
{{- $root := index . 0 -}}
{{- $probe := index . 1 -}}
{{- $monitor := $root.Values.serviceMonitor -}}
{{- if not (or $probe.tcpSocket $probe.exec $probe.grpc) -}}
{{- if or $probe.httpGet (not (or $monitor.basicAuth $monitor.tlsConfig.cert $monitor.tlsConfig.certFile)) -}}
{{- $page := dict "path" (index . 2) "port" "metrics" "scheme" (include "modus.scheme" $root | upper) -}}
{{- $probe = merge (dict "httpGet" (merge (dict) ($probe.httpGet | default dict) $page)) $probe -}}
{{- else -}}
{{- $probe = merge (dict "tcpSocket" (dict "port" "metrics")) $probe -}}
{{- end -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end -}}

{{- define "modus.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|[smhd])" . -1 -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- $sum = add $sum (mul (trimSuffix $unit . | int64) (get $units $unit)) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* Five sixths of the interval, as in prometheus/prometheus.yml, unless the values say another. */}}
{{- define "modus.scrapeTimeout" -}}
{{- $milliseconds := div (mul (include "modus.milliseconds" .interval | int64) 5) 6 -}}
{{- $text := ternary (printf "%ds" (div $milliseconds 1000)) (printf "%dms" $milliseconds) (eq 0 (mod $milliseconds 1000 | int)) -}}
{{- .scrapeTimeout | default $text -}}
{{- end -}}

{{/* What values.schema.json cannot say, or not in words. */}}
{{- define "modus.validate" -}}
{{- $values := .Values -}}
{{- $modus := $values.config.modus | default dict -}}
{{- if hasKey $modus "token" -}}
{{- fail "config.modus.token: everybody who may read ConfigMaps would see it; put the token into a Secret and name that in token.secretName" -}}
{{- end -}}
{{- if and (hasKey $modus "token_file") $values.token.secretName -}}
{{- fail "config.modus.token_file: the Secret of token.secretName is used; set token.secretName to \"\" for a file that extraVolumeMounts brings" -}}
{{- end -}}
{{- if not (or (hasKey $modus "token_file") $values.token.secretName) -}}
{{- fail "token.secretName: name the Secret with the API token, or set config.modus.token_file to a file that extraVolumeMounts brings" -}}
{{- end -}}
{{- if hasKey $values.config "state" -}}
{{- fail "config.state: the chart says where the state is; see state.url and persistence" -}}
{{- end -}}
{{- if regexMatch "//[^/@]*:[^/@$]+@" $values.state.url -}}
{{- fail "state.url: everybody who may read ConfigMaps would see the password; put it into a Secret and name that in state.passwordSecret.name" -}}
{{- end -}}
{{- if and $values.state.url (gt (int $values.shards) 1) -}}
{{- fail "shards: exporters with state.url share the agents by themselves; set replicas, and shards to 1" -}}
{{- end -}}
{{- if and (not $values.state.url) (gt (int $values.replicas) 1) -}}
{{- fail "replicas: several exporters need state.url, a database for the state that they share; without one see shards" -}}
{{- end -}}
{{- with $values.persistence -}}
{{- if and .existingClaim (not .enabled) -}}
{{- fail "persistence.existingClaim: it is not used while persistence.enabled is false; leave one of the two out" -}}
{{- end -}}
{{- if and .existingClaim (gt (int $values.shards) 1) -}}
{{- fail "persistence.existingClaim: one claim cannot hold the state of several shards; leave it out, and each shard gets its own" -}}
{{- end -}}
{{- end -}}
{{- with $values.serviceMonitor -}}
{{- if and .tlsConfig (eq "http" (.scheme | default (include "modus.scheme" $))) -}}
{{- fail "serviceMonitor.tlsConfig: the exporter is scraped by http; name a Secret with TLS in webConfig.secretName, or set serviceMonitor.scheme to https" -}}
{{- end -}}
{{- if gt (include "modus.milliseconds" (include "modus.scrapeTimeout" .) | int64) (include "modus.milliseconds" .interval | int64) -}}
{{- fail (printf "serviceMonitor.scrapeTimeout: %s is more than the interval, %s, and Prometheus refuses that; leave it out, and it follows the interval" .scrapeTimeout .interval) -}}
{{- end -}}
{{- end -}}
{{- end -}}
