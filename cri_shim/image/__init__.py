"""Images: references, pulls, archives, unpacking, and the store of blobs and layers."""
