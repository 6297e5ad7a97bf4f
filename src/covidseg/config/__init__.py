"""Where the YAML lies and what may be made of it."""

from covidseg.config import plans as plans  # gives `${planned:...}` to whatever is composed
