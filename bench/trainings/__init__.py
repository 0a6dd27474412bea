"""What ``convergence.py`` trains: models, text, the site's script, the federation, and what came of it."""
