"""Rewrite: a captured program and the channels that go -> a smaller GraphModule."""
