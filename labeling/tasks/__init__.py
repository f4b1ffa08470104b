"""Tasks for annotators: building, gold tasks, selection of prompts, projects, upload."""
