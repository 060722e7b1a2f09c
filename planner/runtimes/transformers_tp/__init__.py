"""transformers' tensor parallelism: a plan in the model's configuration shards it over the GPUs."""
