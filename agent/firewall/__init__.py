"""The firewall's parts: what may be written, how it is rendered, how it is read back and how flows are ended."""
