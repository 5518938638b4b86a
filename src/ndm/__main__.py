"""``python -m ndm`` is the ``ndm`` command."""

import sys

from ndm.cli import main

if __name__ == "__main__":
    sys.exit(main())
