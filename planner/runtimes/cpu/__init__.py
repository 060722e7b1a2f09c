"""Plain transformers on the CPU, without movement of weights."""
