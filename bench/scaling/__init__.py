"""A federation of many sites in virtual time: links, trees, costs."""
