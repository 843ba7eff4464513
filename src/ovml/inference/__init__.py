"""Using models: tagging, explaining, embedding labels, exporting."""
