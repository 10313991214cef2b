"""What OCI has no word for, as JSON under /api/v1/; `openapi.json` describes it, and a test holds the two together."""
