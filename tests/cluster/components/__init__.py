"""What is installed into the cluster on demand, each from upstream's own manifests."""
