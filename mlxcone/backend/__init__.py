"""Devices, factorizations, lanes of a batch, compiled calls: what every other wing stands on."""
