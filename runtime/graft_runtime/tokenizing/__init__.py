"""Tokenizers and chat templates, the base's and those that adapters bring."""
