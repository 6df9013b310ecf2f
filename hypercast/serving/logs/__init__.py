"""What goes in and what was answered, on disk: engagements, vectors computed, what was served."""
