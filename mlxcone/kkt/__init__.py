"""The linear systems of the methods."""
