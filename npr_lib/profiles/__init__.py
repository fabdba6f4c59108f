"""Profiles: what runs are made of, as YAML, and how one is read (`profile`)."""
