"""Suites of others: lm-eval and garak run in environments of their own against a server, their results and Inspect's logs read as tasks."""
