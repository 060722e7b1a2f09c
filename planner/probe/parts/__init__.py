"""What is measured, one module for each part of a machine; each runs in a process of its own."""
