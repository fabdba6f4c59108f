"""The engine against its peers, on this machine."""
