"""A model as judge: pinned, asked in both orders, calibrated against people."""
