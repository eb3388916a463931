"""Provenance: which channel atoms each element of each value depends on for its existence."""
