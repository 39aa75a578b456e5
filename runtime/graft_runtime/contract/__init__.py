"""The contract between the operator and the runtime, owned by the runtime. Pydantic only.

    wire          what every message is: JSON, hash, version; Fault
    checkpoints   where a checkpoint comes from, which of its files count, digests and names
    schemes       the schemes of URIs, and which prefix of a source a URI lies below
    tasks, ports  what a base model is loaded for; a pod's ports
    config        RuntimeConfig: what a pod is born with; a change of it rolls the pods
    facts         AdapterFacts: what an adapter is, from its files to the operator's status
    adapter_set   AdapterSet: the catalogue of adapters that a pod answers for; hot: a change touches no pod
    status        RuntimeStatus: what is true in the pod, read back by long poll
    control       what else the control port is asked, and its routes

Neither RuntimeConfig nor AdapterSet holds a file-system path: mount roots reach the runtime as whole arguments.
Field names are camelCase on the wire (the Kubernetes convention), snake_case in Python.
"""
