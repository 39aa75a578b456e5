"""vLLM as the engine of a Graft pod. Runs in the Python of a vLLM image; of Graft it imports the messages alone.

__main__     the process: takes one pod at a Unix socket
versions     which versions of vLLM it has been seen with
arguments    of vLLM: the image owner's, and Graft's laid over them
parameters   of the base, counted
shim         commands in, events out
requests     one answer of vLLM as events
mounts       adapters in vLLM's slots, proved before they are told as mounted
plain_lora   the files of a normal form, read
proof        whether slots hold what a file does, and whether an adapter changes an answer
slots        what lies in the slots, read in vLLM's workers
"""
