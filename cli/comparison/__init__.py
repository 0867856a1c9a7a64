"""The parts of ``flowchunk compare``: its variants, and the page that shows their results."""
