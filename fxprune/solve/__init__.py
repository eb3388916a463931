"""Solvers: ChannelGraph, scores and a budget -> Plan."""
