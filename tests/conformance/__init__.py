"""Others' clients against a real server."""
