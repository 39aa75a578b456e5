"""A node agent that runs pods as plain processes: no root, no namespaces, no images.

Honoured: `command`, `args` with `$(NAME)`, `env` and `envFrom` of every kind, `workingDir`, volumes (configMap, secret,
projected, downwardAPI, emptyDir, persistentVolumeClaim, hostPath) with `subPath`, init containers, restart policy with
back-off, startup, readiness and liveness probes (HTTP, TCP, exec), preStop hooks, grace periods, active deadlines,
termination messages, the ServiceAccount's token (through a KUBECONFIG), `kubectl logs`.

There is no mount namespace. Instead, an argument or a variable's value that is as a whole a path at or below a mount
path is rewritten to where the volume lies; so is `workingDir`. A volume at /tmp becomes TMPDIR.

Accepted, not enforced, and told by one event `Unenforced` a pod: images, securityContext, limits, sizes and media of
emptyDir, NetworkPolicies. Not enforced and not told, as almost every pod has them by default: `readOnly` of a mount,
the variables of `enableServiceLinks`, `dnsPolicy` (there is no cluster DNS).

Every other field is refused: the pod fails with reason `Unsupported` and an event names the field. See `pod_fields`.
"""
