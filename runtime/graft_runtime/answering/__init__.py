"""From a request to an answer: which adapters, which tokens, admission, composition."""
