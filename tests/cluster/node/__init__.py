"""A node whose containers are processes: what a kubelet does, without a container engine.

Each pod has a network namespace, each container mount and process namespaces and an overlay of
this machine's own root file system. Probes, hooks, signals, grace, restarts, volumes, environment
and security contexts mean what they mean on a real node; images are not pulled but looked up in a
table.
"""
