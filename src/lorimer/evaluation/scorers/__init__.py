"""From an answer to a score: what is right, what is safe, what keeps to its sources."""
