"""Memory that models take, predicted from sizes alone."""
