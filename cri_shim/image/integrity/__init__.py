"""Check images, seal layers, repair damage."""
