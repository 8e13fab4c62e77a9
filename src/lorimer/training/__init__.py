"""From a recipe and a dataset to an adapter: plan, batches, optimizer, loop, run folder."""
