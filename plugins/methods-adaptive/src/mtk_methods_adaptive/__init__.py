"""Merging methods that learn their coefficients."""
