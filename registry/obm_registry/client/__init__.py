"""The client: experts and backbones on any OCI registry and in OCI image layouts.

Speaks `manifest`, never the service: it runs without a database.
"""
