"""What the node agent and the services' proxy need to talk to the Kubernetes API."""
