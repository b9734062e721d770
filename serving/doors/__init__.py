"""Where requests come in: HTTP and gRPC, each with its library and its table of statuses."""
