"""The audit of a model: what its likelihood is made of, what to quote, and what would lower it."""
