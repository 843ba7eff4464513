"""`OpenImagesDataModule`."""
