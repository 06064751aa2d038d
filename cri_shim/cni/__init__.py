"""Container networking: CNI configuration, plugins, results."""
