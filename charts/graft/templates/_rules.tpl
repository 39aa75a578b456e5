{{/*
What the operator may do where it serves pools: no pods but to look at, no writes to a spec, and no Secrets where
allowedSecrets says nothing.
*/}}
{{- define "graft.rules" -}}
- apiGroups: [graft.dev]
  resources: [adapterdeployments, adapters]
  verbs: [get, list, watch]
- apiGroups: [graft.dev]
  resources: [adapterdeployments/status, adapters/status]
  verbs: [get, patch]
# Where the cluster enforces it, an owner reference that blocks deletion needs this right on the owner.
- apiGroups: [graft.dev]
  resources: [adapterdeployments/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# Which pods are of which Deployment.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- if .Values.allowedClaims.matchLabels }}
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
{{- end }}
{{- if .Values.allowedSecrets.matchLabels }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
{{- end }}
