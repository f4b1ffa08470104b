"""Human feedback through Label Studio: tasks, projects, annotations, their quality, and reports."""
