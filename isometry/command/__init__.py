"""The command line: `isometry measure | compare | prune | info`, also as `python -m isometry`."""

from isometry.command.line import main

__all__ = ["main"]
