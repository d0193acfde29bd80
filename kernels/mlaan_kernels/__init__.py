"""The engine's own operators: for each one a folder with its reference, its native form and its maths."""
