"""What is counted and written down of every request, and how it is told."""
