"""Training runs: settings, the loop, what it needs to go on, and where its files live."""
