"""The life of a pod: its sets, its adapters (hot or merged), its status, and the engine at arm's length."""
