"""Splitting, Newton, interior points, multipliers, certificates."""
