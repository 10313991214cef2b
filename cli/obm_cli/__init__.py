"""The `obm` command."""
