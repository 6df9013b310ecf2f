"""What passes between teacher and students: labels, metrics, gains, monitoring."""
