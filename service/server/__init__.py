"""Sockets, signals and what every request goes through before a route."""
