"""`python -m tensorbus` is the command line."""

from tensorbus.cli.main import main

main()
