"""What the pages of the documentation hold: programs, commands, links."""
