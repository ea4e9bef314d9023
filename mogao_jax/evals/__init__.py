"""Scores of what a model generates that need no particular world."""
