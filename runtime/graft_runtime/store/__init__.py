"""From a URI to checked bytes on the pod's disk, and which adapters are mounted. Holds no torch."""
