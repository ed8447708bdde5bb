"""Operators in the spelling of others: what a converter does not write, or writes wrongly, in terms of what it does.

Each function computes the same values as the operator that it replaces, up to rounding; lowering proves that on every
graph that it rewrites. ``table`` says which operators each is for, and each format's ``lowering`` which it needs.
"""
