"""Bytes under random keys: what stores them knows neither digests nor names."""
