{{- define "graft.name" -}}
{{- if contains "graft" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-graft{{ end }}-operator
{{- end }}

{{- define "graft.signingKeySecret" -}}
{{ include "graft.name" . }}-signing-key
{{- end }}

{{- define "graft.image" -}}
{{ .image.repository }}:{{ .image.tag | default .appVersion }}
{{- end }}

{{- define "graft.selector" -}}
app.kubernetes.io/name: graft-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "graft.labels" -}}
{{ include "graft.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
