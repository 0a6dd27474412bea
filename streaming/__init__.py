"""Items to frames and back: the wire format without I/O, containers and files streamed through it.

Nothing is imported here: the broker reads ``tensorbus.streaming.frames`` without numpy or torch.
"""
