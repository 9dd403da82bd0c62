"""What a person calls: `generate` and its doors, on top of transformers' own preparation of a call."""
