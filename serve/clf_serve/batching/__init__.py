"""Many impatient callers, one model: what becomes a batch, and when."""
