"""Local learning beside end-to-end training on a user's model and machine: `mlaan compare`."""
