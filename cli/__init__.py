"""The command line `tensorbus`, one file a command."""
