"""Wire to request and answer to wire: no sockets, no clocks."""
