"""``fastdecode bench``: what an operation takes here, beside what a user would run otherwise, in the same run."""
