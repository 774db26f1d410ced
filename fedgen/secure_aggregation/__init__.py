"""Secure aggregation: the server learns the sum of the nodes' adapters, and no single node's."""
