"""What can be generated besides actions: each domain brings data, measures and pictures; all else is shared."""

DOMAINS = {"toy2d": "Toy2D", "obstacle": "Obstacle", "images": "Images", "torus": "Torus"}
"""The tasks and the class of each in its module ``flowchunk.cli.domains.TASK``, imported when it is wanted."""
