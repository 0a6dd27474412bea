"""Where messages live. Import the module of the store that is meant."""
