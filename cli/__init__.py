"""Speak: the ``flowchunk`` command, one small file a sub-command."""
