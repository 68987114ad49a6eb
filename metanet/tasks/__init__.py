"""What people want done with networks; each task is a package of its own."""
