"""Everything that talks to others: the Kubernetes API, the pods' control ports, and the tokens for them."""
