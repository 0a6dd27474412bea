"""Parts of the HTTP server, one a noun; ``bus/server.py`` puts them together."""
