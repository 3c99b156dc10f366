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

{{/* The configuration file: the caller's part and what a pod has to have. It is an
annotation of the pod that it is for, which reads it as a file: a container of the
revision before that restarts takes its own configuration, and not a newer one. */}}
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

{{/* The files of a pod, as volumes and as mounts: its configuration, the database's
URL and, if there is one, its CA. */}}
{{- define "keybroker.volumes" -}}
- name: config
  downwardAPI:
    items:
      - path: config.json
        fieldRef: {fieldPath: "metadata.annotations['keybroker/config']"}
- name: database
  secret:
    secretName: {{ include "keybroker.databaseSecret" . }}
    defaultMode: 0440
    items:
      - key: {{ .Values.database.key }}
        path: url
{{- $ca := .Values.database.ca }}
{{- if and $ca.existingConfigMap $ca.existingSecret }}
{{- fail "database.ca: existingConfigMap and existingSecret exclude each other" }}
{{- else if $ca.existingConfigMap }}
- name: database-ca
  configMap:
    name: {{ $ca.existingConfigMap }}
    items: [{key: {{ $ca.key }}, path: ca.pem}]
{{- else if $ca.existingSecret }}
- name: database-ca
  secret:
    secretName: {{ $ca.existingSecret }}
    items: [{key: {{ $ca.key }}, path: ca.pem}]
{{- end }}
{{- if and (or $ca.existingConfigMap $ca.existingSecret) .Values.database.url (not (contains "sslrootcert=" .Values.database.url)) }}
{{- fail "database.url: must name the CA: sslrootcert=/etc/keybroker/database-ca/ca.pem" }}
{{- end }}
{{- end }}

{{- define "keybroker.mounts" -}}
- {name: config, mountPath: /etc/keybroker/config.json, subPath: config.json, readOnly: true}
- {name: database, mountPath: /etc/keybroker/database, readOnly: true}
{{- if or .Values.database.ca.existingConfigMap .Values.database.ca.existingSecret }}
- {name: database-ca, mountPath: /etc/keybroker/database-ca, readOnly: true}
{{- end }}
{{- end }}
