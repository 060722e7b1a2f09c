"""Hugging Face Accelerate: hooks that bring each module's weights to the device it runs on."""
