"""Many requests decoded together: schedule, step, commit."""
