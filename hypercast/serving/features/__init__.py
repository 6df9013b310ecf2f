"""What is asked, and what is known of the past at that moment: histories and dense features."""
