"""The one place of the version. Needs no torch."""

__version__ = "0.2.0"
