"""A plan as a page: what fills each device, how one step passes, and what other batches would do."""
