"""Scores: one importance per coupled channel of a group."""
