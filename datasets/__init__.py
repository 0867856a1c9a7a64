"""Remember: specifications, stores and windows of demonstrations."""
