"""The encodings: arrays to parts and back. Siblings of the container; neither knows the other."""
