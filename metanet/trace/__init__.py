"""From a module, or the name of an architecture, to a stream of operations."""
