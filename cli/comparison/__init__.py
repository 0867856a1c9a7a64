"""What ``flowchunk compare`` is made of: its cells, and the page that shows them."""
