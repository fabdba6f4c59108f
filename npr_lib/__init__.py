"""NPR Workbench: train, run and look at language models that reason in parallel branches."""

__version__ = "0.1.0"


class WorkbenchError(ValueError):
    """Something the person at the keyboard can mend; its message is one clear line.

    The command line prints it without a traceback.
    """
