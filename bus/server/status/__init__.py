"""What is going on, as a JSON value and a stream of it: what the page and `tensorbus top` show."""
