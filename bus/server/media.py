"""Media types."""

FRAMES = "application/vnd.tensorbus.frames"
BATCH = "application/vnd.tensorbus.batch"
