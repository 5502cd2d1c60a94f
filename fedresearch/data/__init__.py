"""Sources and partitions of data, which make up :class:`~fedresearch.data.federated.FederatedData`."""
