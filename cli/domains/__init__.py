"""Domains of generated data: each brings its data, measures and plots; everything else is shared with policies."""

DOMAINS = {"toy2d": "Toy2D", "obstacle": "Obstacle", "images": "Images", "torus": "Torus"}
"""Task: name of its class in the module ``flowchunk.cli.domains.TASK``, which is imported on demand."""
FOLDER = "folder"
"""The choice of ``dataset=`` that needs ``dataset.path``."""

DATASETS = {
    "toy2d": ("8gaussians", "checkerboard", "spiral", "two_moons"),
    "obstacle": ("two_sides",),
    "images": ("digits", FOLDER),
    "torus": ("planar_arm",),
}
"""Task: its choices of ``dataset=``."""
