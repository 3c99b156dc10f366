{{- define "keybroker.name" -}}
{{- if contains "keybroker" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-keybroker" (.Release.Name | trunc 42 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "keybroker.selector" -}}
app.kubernetes.io/name: keybroker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "keybroker.labels" -}}
{{ include "keybroker.selector" . }}
app.kubernetes.io/version: {{ include "keybroker.tag" . | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{- define "keybroker.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "keybroker.image" -}}
{{ .Values.image.repository }}:{{ include "keybroker.tag" . }}
{{- end }}

{{- define "keybroker.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "keybroker.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{/* The Secret of the database's URL: the caller's, or ours. */}}
{{- define "keybroker.databaseSecret" -}}
{{- if and .Values.database.existingSecret .Values.database.url }}
{{- fail "database: existingSecret and url exclude each other" }}
{{- else if .Values.database.existingSecret }}
{{- .Values.database.existingSecret }}
{{- else if .Values.database.url }}
{{- printf "%s-database" (include "keybroker.name" .) }}
{{- else }}
{{- fail "database: set existingSecret (and key), or url" }}
{{- end }}
{{- end }}

{{/* The configuration file: the caller's part and what a pod has to have. */}}
{{- define "keybroker.config" -}}
{{- range $field := list "deployment" "registrar_role" "worker_role" "aws_region" }}
{{- if not (index $.Values.config $field) }}{{ fail (printf "config.%s: is required" $field) }}{{ end }}
{{- end }}
{{- $pod := dict "listen" "127.0.0.1:8443" "admin" "127.0.0.1:8445" "database_url_file" "/etc/keybroker/database/url" }}
{{- merge $pod .Values.config | mustToPrettyJson }}
{{- end }}

{{/* What every container of ours has: nothing that it does not need. */}}
{{- define "keybroker.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "keybroker.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "keybroker.databaseVolume" -}}
name: database
secret:
  secretName: {{ include "keybroker.databaseSecret" . }}
  defaultMode: 0440
  items:
    - key: {{ .Values.database.key }}
      path: url
{{- end }}
