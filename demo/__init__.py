"""The demo: a federation of a small language model on one machine, every part a process of its own."""
