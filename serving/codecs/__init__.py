"""Wire to request and answer to wire: pure functions, no sockets, no models."""
