"""The node's program: holds the machine to its signed baseline and proves how it booted."""

VERSION = "0.1.0"
