"""Adapters compiled for a base that is not loaded: what of the base they need is read from its checkpoint.

stored_modules   the modules of such a base
reducible        which adapters are exactly plain LoRA, before a weight is read
normal_form      plain LoRA that does what an adapter does, or a weighted sum of several
plain_lora       its files, as PEFT reads them
conversion       from adapters on disk to those files
__main__         the same for one adapter of a pod, in a process of its own
"""
