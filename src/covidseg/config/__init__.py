"""Where the YAML lies and what may be made of it."""
