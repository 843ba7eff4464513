"""The `ovml` command."""
