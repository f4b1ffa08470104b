"""What is put before people: tasks, gold tasks, selection, projects."""
