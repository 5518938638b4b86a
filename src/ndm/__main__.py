"""The ``ndm`` command, also as ``python -m ndm``."""

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run :func:`ndm.cli.main` as the command of this process, and return its exit code.

    Ctrl-C during the imports ends the process without a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ndm.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
