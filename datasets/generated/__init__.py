"""Small data sets that are made or bundled: toys, images, an obstacle to pass, an arm's inverse kinematics."""
