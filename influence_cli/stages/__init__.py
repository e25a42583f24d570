"""The pipeline: what a run is, what of it is missing, and the stages that the commands and the API call."""
