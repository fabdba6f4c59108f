"""What runs notebooks: profiles, stages, the pipeline, the manifest and the pages of a report."""
