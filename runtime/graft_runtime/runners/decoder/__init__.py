"""The `decoder` runner: rows of many sequences packed into one forward pass, with keys and values of our own.

step        all that one pass reads from the device, as a value that is filled in place
runner      fills steps and takes them through the model
attention   what a store of keys and values, and attention over it, must do; how the model calls it
past        what is known of a sequence's beginning from others before it, and by which keys
kept_blocks  keys and values that are kept beside extents for later sequences
weighted    attention in plain PyTorch
extents     keys and values in one contiguous extent a sequence
over_extents  attention over those
pages       keys and values in pages of one pool
over_pages  attention over those
places      which of the two a device gets
static      steps of rows that decode, in shapes that come again
captured    those steps in CUDA graphs
probe       which models may be served like this
"""
