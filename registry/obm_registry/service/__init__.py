"""The use cases of a registry, with the meaning that OCI gives them; every way in calls these."""
