"""The main job: from a job to a judged report."""
