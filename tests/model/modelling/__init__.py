"""What a broker should be, in a few hundred lines without disk, threads or time: the reference of a model."""
