"""Media types."""

FRAMES = "application/vnd.tensorbus.frames"
