"""Keys and values in pages that sequences share."""
