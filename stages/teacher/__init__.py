"""Teachers: what one is, and adapters."""
