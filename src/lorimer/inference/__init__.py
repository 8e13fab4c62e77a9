"""The engine that evaluation and serving share: many sequences, many adapters, one base, one batch."""
