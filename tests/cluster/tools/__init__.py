"""The programs of a cluster: pinned, built or fetched once into a cache, found again by name."""
