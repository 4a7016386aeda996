"""Merging methods that weigh experts by statistics of their data."""
