"""Agreement, habits, reliability and screening of annotators."""
