{{- define "graft.name" -}}
{{- if contains "graft" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-graft{{ end }}-operator
{{- end }}

{{/* Of objects that lie in no namespace. */}}
{{- define "graft.clusterName" -}}
{{ .Release.Namespace | default "default" }}-{{ include "graft.name" . }}
{{- end }}

{{- define "graft.signingKeySecret" -}}
{{ include "graft.name" . }}-signing-key
{{- end }}

{{- define "graft.image" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}
{{- else }}{{ .image.repository }}:{{ .image.tag | default .appVersion }}
{{- end }}
{{- end }}

{{/* What the restricted Pod Security Standard asks for. */}}
{{- define "graft.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "graft.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end }}

{{/* Who brought an object that lies in no namespace, where that is not this release: it stays as it is. */}}
{{- define "graft.otherOwner" -}}
{{- $root := index . 0 }}
{{- $found := lookup (index . 1) (index . 2) "" (index . 3) }}
{{- if $found }}
{{- $annotations := $found.metadata.annotations | default dict }}
{{- $name := index $annotations "meta.helm.sh/release-name" | default "" }}
{{- $namespace := index $annotations "meta.helm.sh/release-namespace" | default "" }}
{{- if not (and (eq $name $root.Release.Name) (eq $namespace $root.Release.Namespace)) }}
{{- if $name }}release {{ $name }} in {{ $namespace }}{{ else }}no Helm release{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Who brought a CustomResourceDefinition, where that is not this release. */}}
{{- define "graft.crdOwner" -}}
{{- $root := index . 0 }}
{{- if $root.Values.crds.enabled }}
{{- include "graft.otherOwner" (list $root "apiextensions.k8s.io/v1" "CustomResourceDefinition" (index . 1)) }}
{{- end }}
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
