"""What can be generated besides actions: each domain brings data, measures and pictures; all else is shared."""

DOMAINS = {"toy2d": "Toy2D", "obstacle": "Obstacle", "images": "Images", "torus": "Torus"}
"""The tasks and the class of each in its module ``flowchunk.cli.domains.TASK``, imported when it is wanted."""
FOLDER = "folder"
"""The choice of ``dataset=`` that has a path."""

DATASETS = {
    "toy2d": ("8gaussians", "checkerboard", "spiral", "two_moons"),
    "obstacle": ("two_sides",),
    "images": ("digits", FOLDER),
    "torus": ("planar_arm",),
}
"""The choices of ``dataset=`` of each task."""
