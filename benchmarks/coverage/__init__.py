"""Which models fxprune slims: ``python -m benchmarks.coverage --suite torchvision``.

1. A *case* is a model with random weights and inputs of the size it is made for. Nothing is downloaded.
2. Every case runs in a process of its own with a time limit and a memory limit; a crash and a hang are outcomes like any other.
3. A case is *verified* if ``slim(model, 0.5)`` is held equal to the masked original, returns outputs of the original's shapes, and
   trains one step; *refused* if fxprune raised one of its own errors; *failed* if anything else happened; *skipped* if a package
   it needs is not installed.
4. Results go to a file of JSON lines, one per case; ``docs/coverage.md`` is written from such files.
"""
