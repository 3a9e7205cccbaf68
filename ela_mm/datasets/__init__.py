"""Datasets that the demo brings along."""
