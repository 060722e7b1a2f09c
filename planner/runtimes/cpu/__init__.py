"""Plain transformers on the CPU: nothing is moved."""
