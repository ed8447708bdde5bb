"""Whether a bundle may be released: held to budgets, and to the bundle before it."""
