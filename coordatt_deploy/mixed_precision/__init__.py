"""Mixed precision: which layers cost accuracy in int8, and the fewest that must stay in float."""
