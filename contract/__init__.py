"""What agent and controller must agree on, byte for byte. Pure: no sockets, no clock, no files."""
