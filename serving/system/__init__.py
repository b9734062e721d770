"""What is asked of the operating system: sockets, memory, files, time."""
