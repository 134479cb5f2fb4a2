"""Measurements and a budget to a selection."""
