"""What a model knows by heart: canaries, rows word by word, who was in the training data."""
