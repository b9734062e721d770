"""The gRPC door, imported only where it is open."""
