"""HTTP: the OpenAI routes, the control port, their words and their streams."""
