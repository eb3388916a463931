"""Absorption: the constant that a removed channel still emits goes into what reads it."""
