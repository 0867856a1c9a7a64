"""Small data sets that are made or bundled: toys, pictures, an obstacle to pass, an arm's inverse kinematics."""
