"""The artifact registry: who refers to what, and how experts are published and fetched."""
