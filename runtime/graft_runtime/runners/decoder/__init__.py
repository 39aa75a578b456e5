"""The `decoder` runner: rows of many sequences packed into one forward pass, with keys and values of our own.

step        all that one pass reads from the device, as a value that is filled in place
runner      fills steps and takes them through the model
attention   what a store of keys and values, and attention over it, must do; how the model calls it
extents     keys and values in one contiguous extent a sequence
over_extents  attention over those
probe       which models may be served like this
"""
