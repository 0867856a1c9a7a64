"""Small data sets, generated or bundled: toy distributions, images, obstacle avoidance, an arm's inverse kinematics."""
