"""Development tools: they make what the package ships, and are not installed with it."""
