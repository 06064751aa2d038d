"""Whether images are what they should be: checked, sealed, repaired."""
