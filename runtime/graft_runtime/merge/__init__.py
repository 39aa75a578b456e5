"""Adapters folded into the weights of their base: W' = W + Σ weight · B·A, in float32 and rounded once.

sums      the sum of one module
memory    onto a loaded base, when a pod starts
files     from checkpoint to checkpoint
"""
