"""Real parts for tests, the demo and the bench: software TPMs, networks, databases, simulators."""
