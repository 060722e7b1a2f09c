"""This machine as a hardware profile, every number measured here and now."""
