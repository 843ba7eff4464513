"""`NUSWIDEDataModule`."""
