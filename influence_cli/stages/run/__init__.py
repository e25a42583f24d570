"""What a run is: rows, model, methods, members, what is stored and what is missing."""
