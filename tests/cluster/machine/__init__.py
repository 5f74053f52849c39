"""A machine for one cluster: namespaces of its own, in which everything of the cluster runs.

Network, mount and process namespaces belong to one process. When it ends, however it ends, the
kernel ends every process in them and takes away every mount, network namespace and link: nothing is
left to be cleaned up.
"""
