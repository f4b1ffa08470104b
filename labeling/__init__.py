"""People in the loop: everything that touches Label Studio."""
