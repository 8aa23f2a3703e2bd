"""Training of the policies that this repository ships."""
