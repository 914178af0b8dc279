"""`python -m isometry`, which is what the console script `isometry` does."""

import sys

from isometry.command import main

if __name__ == "__main__":
    sys.exit(main())
