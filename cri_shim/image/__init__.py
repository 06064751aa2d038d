"""Images: references, archives, unpacking, the layer store."""
