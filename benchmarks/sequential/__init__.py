"""Next-item prediction over sequences of items: what the offline benchmarks of sequence encoders share."""
