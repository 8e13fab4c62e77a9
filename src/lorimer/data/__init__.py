"""What goes in: examples, where they come from, what is wrong with them, and immutable datasets. Pure Python, no torch."""
