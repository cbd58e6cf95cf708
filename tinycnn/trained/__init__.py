"""The network that comes with the package; see README.md here."""
