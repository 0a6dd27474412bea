"""The federation: rounds, their updates, and both sides of a job."""
