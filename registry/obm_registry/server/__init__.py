"""The registry over HTTP: OCI Distribution under /v2/, in front of the use cases of `service`."""
