"""The routes of the API port: each with its request body, the words of its answers, and its router."""
