"""What people look at: a run's page, the report card, JUnit."""
