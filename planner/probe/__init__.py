"""Measures this machine and writes a hardware profile from the measurements."""
