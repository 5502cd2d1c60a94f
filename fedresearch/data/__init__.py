"""Sources and partitions of data: what becomes :class:`~fedresearch.data.federated.FederatedData`."""
