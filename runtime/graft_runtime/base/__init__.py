"""A base model's files, read without torch."""
