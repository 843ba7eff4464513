"""`HubDataModule`."""
