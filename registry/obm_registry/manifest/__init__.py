"""Messages that both sides of the registry speak: how experts and backbones become blobs and manifests."""
