"""The HTTP door: bytes, connections, keys and compression, routes, the page for people."""
