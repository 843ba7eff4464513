"""`JSONDataModule`."""
