"""Which adapter is which: versions by digest, aliases that move only past a gate, lineage, the audit table."""
