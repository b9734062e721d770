"""What a host can do with a bundle, one click command a file."""
