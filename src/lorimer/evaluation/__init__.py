"""Is the adapter better? Tasks, scorers, intervals, reports and gates, always beside the base."""
