"""The command line: ``fxprune inspect | slim | train | sensitivity | bench | diff | export``.

1. A command parses its options, calls the library, and prints: tables for people, or with ``--json`` one JSON object whose keys are documented
   (docs/command-line.md). What is printed for people about progress goes to the standard error output.
2. Exit codes: 0 done; 1 refused, with the message of an ``FxpruneError`` and no traceback; 2 a command line that makes no sense; 3 a
   defect of fxprune or of the model's code, with its traceback.
"""

from fxprune.cli.app import main as main

__all__ = ["main"]
