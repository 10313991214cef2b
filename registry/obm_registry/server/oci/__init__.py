"""OCI Distribution v1.1 under /v2/, one file per kind of thing."""
