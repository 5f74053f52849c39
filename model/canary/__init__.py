"""A new version's way to all of the traffic, or back: decided by figures, held in the cluster.

It stands alone: it asks the API server, Prometheus and the canary's own service, and needs neither
torch nor kserve nor another floor of the model.
"""
