"""torch forms of the batched linear algebra. Empty for now: they come with the GPU backend."""
