"""The database's schema, step by step; each file in versions/ is one step, applied by `open_database` and never changed once released."""
