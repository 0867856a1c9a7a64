"""The ``flowchunk`` command: a module for each sub-command, with its help as the docstring."""
