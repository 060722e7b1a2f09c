"""transformers' own tensor parallelism: its configuration's plan cuts the model over the GPUs."""
